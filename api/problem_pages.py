"""The page behind each problem's `type`: what it means and what to do, in English and Chinese."""

from dataclasses import dataclass
from html import escape
from typing import Annotated

from fastapi import APIRouter, Path, Request
from fastapi.responses import HTMLResponse

from api.problems import documented
from api.strict import StrictRoute
from core.errors import NotFound

router = APIRouter(prefix="/problems", tags=["problems"], route_class=StrictRoute)


@dataclass(frozen=True)
class About:
    status: int
    en: str
    zh: str


ABOUT = {
    "malformed-http": About(
        400,
        "What was sent is not HTTP/1.1: a broken request line, header or length. No usual client sends such a thing.",
        "发送的内容不是合法的 HTTP/1.1：请求行、请求头或长度有误。常见客户端不会发送这样的内容。",
    ),
    "malformed-json": About(
        400,
        "The body is not one strict JSON value in UTF-8: NaN, a key twice, a lone surrogate or cut text. Send valid JSON.",
        "请求体不是严格的 UTF-8 JSON：可能含 NaN、重复的键、孤立的代理字符或被截断。请发送合法的 JSON。",
    ),
    "malformed-form": About(
        400,
        "The body is not one whole form (multipart/form-data): no boundary, a part without a name, or cut. "
        "`curl -F image=@seven.png` sends a right one.",
        "请求体不是完整的 multipart/form-data 表单：可能缺少 boundary、某部分没有名称或被截断。"
        "可用 curl -F image=@seven.png 发送。",
    ),
    "unauthorized": About(
        401,
        "This server needs a key: `Authorization: Bearer dsc_...`, one such header. Whoever runs it makes one with "
        "`descent keys create NAME`; a key that was revoked works no more.",
        "此服务器需要密钥：请发送一个 Authorization: Bearer dsc_... 头。"
        "管理员用 descent keys create 创建密钥；已撤销的密钥不再有效。",
    ),
    "cross-site": About(
        403,
        "A browser sent this for a page of another site, and such pages may change nothing here. Programs are not concerned.",
        "浏览器代表其他网站的页面发送了该请求，这类页面不得在此做任何更改。程序直接调用不受影响。",
    ),
    "not-found": About(
        404,
        "There is no such job, model or path. A deleted job is gone for good; GET /jobs lists those there are.",
        "没有这个任务、模型或路径。已删除的任务无法恢复；GET /jobs 列出现有任务。",
    ),
    "method-not-allowed": About(
        405,
        "This path does not take that method; the header Allow says which it takes.",
        "该路径不支持此方法；Allow 头列出支持的方法。",
    ),
    "model-not-ready": About(
        409,
        "The job has no weights to give: it has not ended, or ended without any. Wait until `model.ready` is true.",
        "任务还没有可用的权重：尚未结束，或结束时没有产生权重。请等到 model.ready 为 true。",
    ),
    "model-unsupported": About(
        409,
        "The stored weights are whole, but of another network than this server knows, so it cannot run or convert them. They "
        "can be downloaded as they are, as pdparams or safetensors.",
        "存储的权重是完整的，但属于本服务器不认识的网络，无法运行或转换。可以按原样下载（pdparams 或 safetensors）。",
    ),
    "job-not-terminal": About(
        409,
        "What was asked needs a job that has ended. Cancel it, or wait until `terminal` is true.",
        "该操作需要任务已经结束。请先取消任务，或等到 terminal 为 true。",
    ),
    "job-in-use": About(
        409,
        "An alias names the job's model, so it is not deleted. Name another model (PUT) or forget the alias (DELETE) first.",
        "有别名指向该任务的模型，因此不能删除。请先让别名指向其他模型（PUT），或删除别名（DELETE）。",
    ),
    "alias-reserved": About(
        409,
        "`best` and `latest`, and those of a data set, are kept by the server. Choose another alias.",
        "best、latest 及各数据集的同类名称由服务器维护，请使用其他别名。",
    ),
    "not-acceptable": About(
        406,
        "What is asked for cannot be had in any of the media types that the header Accept names. Leave it out, or add `*/*`.",
        "无法以 Accept 头所列的任何媒体类型返回内容。请去掉该头，或加上 */*。",
    ),
    "request-timeout": About(
        408,
        "The request stopped in its middle: its length or its end was not as announced. Send it whole, without long pauses.",
        "请求在中途停止：长度或结尾与声明不符。请完整发送，中间不要长时间停顿。",
    ),
    "precondition-failed": About(
        412,
        "There is another state by now than the one that `If-Match` names; the header `ETag` names this one. Begin "
        "anew with that, or ask without `If-Match`.",
        "当前状态与 If-Match 所指的不同；ETag 头给出当前状态。请去掉 If-Match，或以新的 ETag 重新开始。",
    ),
    "too-large": About(
        413,
        "The body is longer than the server takes. Send fewer or smaller images a request.",
        "请求体超过服务器上限。请减少每次请求的图片数量或大小。",
    ),
    "unsupported-media-type": About(
        415,
        "The body must be sent as `Content-Type: application/json`.",
        "请求体必须以 Content-Type: application/json 发送。",
    ),
    "foreign-host": About(
        421,
        "The Host header names a server that this one is not. Use its address, or add the name to DESCENT_ALLOWED_HOSTS.",
        "Host 头指向的不是本服务器。请使用其地址，或把该名称加入 DESCENT_ALLOWED_HOSTS。",
    ),
    "validation-error": About(
        422,
        "The request is well-formed and wrong. `errors` names each place, what is allowed there, and what you may have meant.",
        "请求格式正确但内容有误。errors 列出每处错误、允许的取值以及可能想写的值。",
    ),
    "idempotency-key-reused": About(
        422,
        "This Idempotency-Key was used for another request within a day. Use a new key for a new request.",
        "该 Idempotency-Key 一天内已用于另一个请求。新请求请使用新的键。",
    ),
    "model-deleted": About(
        410,
        "The job was deleted, and its model with it; it does not come back. Use another job's, or an alias that outlives jobs.",
        "该任务及其模型已被删除，无法恢复。请改用其他任务的模型，或使用比任务更长久的别名。",
    ),
    "range-not-satisfiable": About(
        416,
        "The file has none of the bytes that `Range` asks for; `Content-Range` says how many there are. Ask within them.",
        "Range 请求的字节不在文件之内；Content-Range 给出文件的总字节数。请在该范围内请求。",
    ),
    "job-deleted": About(
        410,
        "What was made with this Idempotency-Key was deleted within the day. Use a new key to make another.",
        "用该 Idempotency-Key 创建的对象在一天内已被删除。若要再创建，请使用新的键。",
    ),
    "rate-limited": About(
        429,
        "This key sends more requests of this kind than it may. Wait `Retry-After` seconds; poll less often, or use a stream.",
        "该密钥发送此类请求过于频繁。请等待 Retry-After 秒；降低轮询频率，或改用事件流。",
    ),
    "queue-full": About(
        429,
        "As many jobs wait as may, of yours or of all. Let some end or cancel some, and try again after `Retry-After` seconds.",
        "等待中的任务已达上限（您的或全部的）。请等待部分任务结束或取消一些，并在 Retry-After 秒后重试。",
    ),
    "headers-too-large": About(
        431,
        "The request has more than 100 headers, or more than 32 KiB of them.",
        "请求头超过 100 个，或总长超过 32 KiB。",
    ),
    "internal": About(
        500,
        "A bug in the server. Its log has the details under the `request_id` of the answer.",
        "服务器内部错误。日志中可用响应里的 request_id 查到详情。",
    ),
    "artifact-corrupt": About(
        500,
        "A stored file is missing or does not match its digest, so it is not used. Train the job again, or restore the file.",
        "存储的文件缺失或与摘要不符，因此不会使用。请重新训练，或恢复该文件。",
    ),
    "unavailable": About(
        503,
        "The database or the storage of the jobs' files cannot be reached, or is nearly full. Nothing was accepted; try again "
        "after `Retry-After` seconds.",
        "数据库或任务文件的存储无法访问或将满，请求未被接受；请在 Retry-After 秒后重试。",
    ),
}


@router.get("/{code}", response_class=HTMLResponse, responses=documented(404), summary="What a problem's type means")
async def page(code: Annotated[str, Path(json_schema_extra={"enum": sorted(ABOUT)})], request: Request) -> HTMLResponse:
    about = ABOUT.get(code)
    if about is None:
        raise NotFound("no such kind of problem")
    name = escape(code)
    return HTMLResponse(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{name}</title><h1>{name} ({about.status})</h1>'
        f'<p>{escape(about.en)}</p><p lang="zh">{escape(about.zh)}</p></html>\n'
    )
