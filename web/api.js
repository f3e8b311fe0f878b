// Talks to the server this page came from: JSON calls with a time limit, the event stream, and whether it can be reached.

const KEPT = "descent.key";
const LONGEST_MS = 30_000;

/** The server's answer to what it would not do: a problem document (RFC 9457), or what we made of another answer. */
export class Problem extends Error {
  constructor(status, body, requestId) {
    super(body.detail ?? body.title ?? `HTTP ${status}`);
    this.status = status;
    this.code = body.code ?? "unknown";
    /** `[{pointer, detail, allowed?, did_you_mean?}]` */
    this.errors = body.errors ?? [];
    this.requestId = requestId;
    this.retryAfterS = null;
  }
}

/** The server could not be reached, or gave no whole answer; `isLate` when it was given up after its time limit. */
export class Unreachable extends Error {
  constructor(cause) {
    super(cause.message);
    this.isLate = cause.name === "TimeoutError";
  }
}

/**
 * What the page knows of its connection. Fires `change` when `isUp` changes, `key` when the server wants one.
 * Whoever polls need not say anything: each call tells it.
 */
class Connection extends EventTarget {
  isUp = true;

  tell(isUp) {
    if (isUp === this.isUp) return;
    this.isUp = isUp;
    this.dispatchEvent(new Event("change"));
  }

  needsKey() {
    this.dispatchEvent(new Event("key"));
  }
}
export const connection = new Connection();

/** The key to send, for servers that require one; null forgets it. */
export function setKey(key) {
  if (key) sessionStorage.setItem(KEPT, key);
  else sessionStorage.removeItem(KEPT);
}

/** Whether a key is sent. */
export const hasKey = () => sessionStorage.getItem(KEPT) !== null;

function headersOf(headers) {
  const key = sessionStorage.getItem(KEPT);
  return key ? { ...headers, Authorization: `Bearer ${key}` } : headers;
}

/** A request as it is; raises Problem for refusals and Unreachable. `options` are fetch's, and `limitMs`. */
export async function send(method, path, { headers = {}, limitMs = LONGEST_MS, signal, ...options } = {}) {
  const limit = AbortSignal.timeout(limitMs);
  let response;
  try {
    response = await fetch(path, {
      method,
      headers: headersOf(headers),
      signal: signal ? AbortSignal.any([signal, limit]) : limit,
      ...options,
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    const unreachable = new Unreachable(error);
    if (!unreachable.isLate) connection.tell(false); // who is slow is there
    throw unreachable;
  }
  connection.tell(true);
  if (response.ok || response.status === 304) return response;
  throw await refusal(response);
}

async function refusal(response) {
  const body = await response.json().catch(() => ({}));
  if (response.status === 401) connection.needsKey();
  const problem = new Problem(response.status, body, response.headers.get("X-Request-Id"));
  const wait = Number(response.headers.get("Retry-After"));
  if (wait > 0) problem.retryAfterS = wait;
  return problem;
}

async function json(method, path, body, options = {}) {
  const content = body === undefined ? {} : { body: JSON.stringify(body) };
  const headers = { ...options.headers, ...(body === undefined ? {} : { "Content-Type": "application/json" }) };
  const response = await send(method, path, { ...options, ...content, headers });
  if (response.status === 204) return null;
  try {
    return await response.json();
  } catch (error) {
    throw new Unreachable(error); // cut in its middle
  }
}

/** The JSON that a path answers with. */
export const get = (path, options) => json("GET", path, undefined, options);
export const post = (path, body, options) => json("POST", path, body, options);
export const put = (path, body, options) => json("PUT", path, body, options);
export const remove = (path, options) => json("DELETE", path, undefined, options);

/** Save what a path answers with, under a name. */
export async function download(path, name) {
  const response = await send("GET", path, { limitMs: 120_000 });
  try {
    save(await response.blob(), name);
  } catch (error) {
    throw new Unreachable(error); // cut in its middle
  }
}

/** Hand content to the browser as a file. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

/**
 * Read an event stream to its end: `onEvent({id, event, data})` for each, `data` decoded. By fetch and not by EventSource,
 * which can send no key. Resolves when the stream is over (`true`: there is no more to come), raises as `send` does; a stream
 * in which nothing comes for 40 s is dead (the server says that it lives every 15 s).
 */
export async function stream(path, { lastId, onEvent, signal }) {
  const quiet = new AbortController();
  let timer = setTimeout(() => quiet.abort(), 40_000);
  const headers = { Accept: "text/event-stream", ...(lastId ? { "Last-Event-ID": lastId } : {}) };
  try {
    const both = AbortSignal.any([signal, quiet.signal]);
    const response = await send("GET", path, { headers, signal: both, limitMs: 2 ** 31 - 1, cache: "no-store" });
    if (response.status === 204) return true;
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return false;
      clearTimeout(timer);
      timer = setTimeout(() => quiet.abort(), 40_000);
      const blocks = (text + value).split("\n\n");
      text = blocks.pop();
      for (const event of blocks.map(parsed)) {
        if (event.event === "end") return true;
        if (event.data) onEvent(event);
      }
    }
  } catch (error) {
    if (signal.aborted || error instanceof Problem || error instanceof Unreachable) throw error;
    throw new Unreachable(error);
  } finally {
    clearTimeout(timer);
  }
}

function parsed(block) {
  const event = {};
  for (const line of block.split("\n")) {
    const colon = line.indexOf(": ");
    if (colon > 0) event[line.slice(0, colon)] = line.slice(colon + 2);
  }
  if (event.data) event.data = JSON.parse(event.data);
  return event;
}
