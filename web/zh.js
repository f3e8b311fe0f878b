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

  // --- new (new.js) ---

  // --- rate (rate.js) ---

  // --- run (run.js, evaluation.js) ---

  // --- draw (draw.js) ---

  // --- explain (explain.js, valley.js) ---
};
