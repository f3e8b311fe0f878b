// Waiting, without leaving a listener behind.

/** Until something happens. */
export const happening = (target, name) =>
  new Promise((resolve) => target.addEventListener(name, resolve, { once: true }));

/** What is due now comes first. */
export const turn = () => new Promise((resolve) => setTimeout(resolve));

/** So long, or until something happens, if that is sooner. */
export function pauseUnless(ms, target, name) {
  return new Promise((resolve) => {
    const stop = new AbortController();
    const end = () => {
      stop.abort();
      clearTimeout(timer);
      resolve();
    };
    const timer = setTimeout(end, ms);
    target.addEventListener(name, end, { signal: stop.signal });
  });
}

/** Until somebody looks at the page. */
export async function whileLookedAt() {
  while (document.hidden) await happening(document, "visibilitychange");
}
