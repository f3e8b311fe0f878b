// 页面的中文文字。与 en.js 的键完全相同；每一节属于同名的模块。

export default {
  // --- frame (main.js, text.js, chart.js) ---
  "title.runs": "训练任务",
  "title.new": "新建",
  "title.run": "任务",
  "title.rate": "寻找学习率",
  "title.draw": "手写数字",
  "title.explain": "原理演示",
  "frame.nav": "页面",
  "frame.skip": "跳到正文",
  "frame.api": "REST API",
  "frame.theme": "浅色或深色",
  "frame.other_language": "English",
  "frame.offline": "无法连接服务器。当前内容可能已过时；服务器恢复后会自动继续。",
  "key.title": "此服务器需要密钥",
  "key.text": "由管理员用 descent keys create NAME 创建。关闭此标签页后不再保留。",
  "key.label": "密钥",
  "key.enter": "进入",
  "time.s": "{s} 秒",
  "time.min": "{min} 分 {s} 秒",
  "time.h": "{h} 小时 {min} 分",
  "chart.missing": "图表需要 plotly，而此服务器未安装（pip install descent[ui]）。表格中有同样的数据。",
  "chart.failed": "图表加载失败。表格中有同样的数据。",
  "plotly.Autoscale": "自动缩放",
  "plotly.Reset axes": "重置坐标轴",
  "plotly.Download plot as a PNG": "下载为 PNG",
  "plotly.Pan": "平移",
  "plotly.Zoom": "缩放",
  "plotly.Zoom in": "放大",
  "plotly.Zoom out": "缩小",
  "plotly.Double-click to zoom back out": "双击恢复",

  // --- what several views say ---
  "status.queued": "排队中",
  "status.running": "训练中",
  "status.pausing": "正在暂停",
  "status.paused": "已暂停",
  "status.cancelling": "正在取消",
  "status.succeeded": "成功",
  "status.failed": "失败",
  "status.cancelled": "已取消",
  "verdict.good": "良好",
  "verdict.too_slow": "过慢",
  "verdict.oscillating": "震荡",
  "verdict.diverged": "发散",
  "axis.step": "步",
  "axis.epoch": "轮（epoch）",
  "axis.time": "训练时间（秒）",
  "axis.loss": "损失",
  "axis.accuracy": "准确率",
  "axis.rate": "学习率",

  // --- runs (runs.js, table.js, curves.js) ---

  // --- sweep (sweep.js, grid.js, parallel.js) ---
  "grid.show": "显示",
  "grid.accuracy": "测试准确率",
  "grid.loss": "最后的损失",
  "grid.time": "训练时间",
  "grid.caption": "优化算法与学习率对照：{what}",
  "grid.hint": "{all} 个任务中有 {ended} 个已有结果。同一格有多个任务时显示平均值；点击可勾选它们。",
  "parallel.label": "每个任务一条线，穿过它的设置与结果",
  "parallel.hint": "沿某条轴拖动，只保留经过该范围的任务；单击该轴恢复全部。单击一条线可勾选该任务。",
  "parallel.optimizer": "优化算法",
  "parallel.rate": "学习率",
  "parallel.batch_size": "批大小",
  "parallel.epochs": "轮数",
  "parallel.seed": "随机种子",
  "parallel.loss": "最后的损失",
  "parallel.time": "训练时间",
  "parallel.accuracy": "测试准确率",
  "sweep.title": "对比实验",
  "sweep.loading": "正在读取对比实验……",
  "sweep.gone": "没有这个对比实验，可能已被删除。",
  "sweep.status.queued": "排队中",
  "sweep.status.running": "进行中",
  "sweep.status.cancelling": "正在取消",
  "sweep.status.finished": "已完成",
  "sweep.status.cancelled": "已取消",
  "sweep.ended.one": "{n} 个任务中有 {ended} 个已结束",
  "sweep.ended.other": "{n} 个任务中有 {ended} 个已结束",
  "sweep.progress": "对比实验的进度",
  "sweep.cancel": "取消整个实验",
  "sweep.table": "按配置汇总，最好的在前",
  "sweep.caption": "步数与时间：到验证准确率首次达到 {target} 为止。",
  "sweep.column.label": "配置",
  "sweep.column.accuracy": "测试准确率",
  "sweep.column.loss": "最后的损失",
  "sweep.column.steps": "达标步数",
  "sweep.column.seconds": "达标时间",
  "sweep.column.verdict": "判定",
  "sweep.best": "最佳",

  // --- new (new.js) ---

  // --- rate (rate.js) ---

  // --- run (run.js, evaluation.js) ---

  // --- draw (draw.js) ---

  // --- explain (explain.js, valley.js) ---
};
