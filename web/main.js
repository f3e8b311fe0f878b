// The page's frame: which view is shown (the address says it), language, colours, the connection, and the key where one is needed.
//
// A view is a module with `mount(root, route)`: it fills `root` and returns a function that ends it (or nothing).
// `route` is `{view, id, query, setQuery}`: `query` is a URLSearchParams; `setQuery(changes)` puts what is to be seen into the
// address without a new entry in the browser's history, so that a link shows the same (null takes a name out).

import { connection, get } from "./api.js";
import { fill, h } from "./dom.js";
import * as draw from "./draw.js";
import * as explain from "./explain.js";
import { askForKey } from "./key.js";
import { live } from "./live.js";
import * as create from "./new.js";
import * as rate from "./rate.js";
import * as run from "./run.js";
import * as runs from "./runs.js";
import { LANGUAGES, language, speak, t } from "./text.js";

const VIEWS = { runs, new: create, run, rate, draw, explain };
const TABS = ["runs", "new", "draw", "explain"];
const THEME = "descent.theme";
const THEMES = ["light", "dark"];
const darkness = matchMedia("(prefers-color-scheme: dark)");

const root = h("main", { id: "view", tabIndex: -1 });
const header = h("header.frame");
const banner = h("div.banner", { role: "status", hidden: true });
let unmount = null;
let isKeyWanted = false;

function route() {
  const [path, search = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [view, id] = path.split("/");
  const query = new URLSearchParams(search);
  return { view: Object.hasOwn(VIEWS, view) ? view : "runs", id: id || null, query, setQuery };
}

function setQuery(changes) {
  const { query } = route();
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "") query.delete(name);
    else query.set(name, value);
  }
  const [path] = location.hash.replace(/^#\/?/, "").split("?");
  const search = query.toString().replaceAll("%2C", ",");
  history.replaceState(null, "", `#/${path}${search ? `?${search}` : ""}`);
}

function show() {
  const now = route();
  const focused = document.activeElement?.id; // the header is made anew: who switched something there stays there
  unmount?.();
  document.title = `${t(`title.${now.view}`)} · Descent`;
  showHeader(now.view);
  showBanner();
  fill(root);
  root.dataset.view = now.view;
  unmount = VIEWS[now.view].mount(root, now) ?? null;
  if (focused) document.getElementById(focused)?.focus();
}

/** Another address: begin at its top, and tell those who do not see it. */
function go() {
  show();
  scrollTo(0, 0);
  root.focus({ preventScroll: true });
}

function showHeader(view) {
  const tabs = TABS.map((name) =>
    h(
      "a",
      { href: `#/${name === "runs" ? "" : name}`, "aria-current": name === view ? "page" : null },
      t(`title.${name}`),
    ),
  );
  const [other] = LANGUAGES.filter((each) => each !== language);
  fill(
    header,
    h("a.logo", { href: "#/", "aria-label": "Descent" }, h("span.mark", { "aria-hidden": "true" }), "Descent"),
    h("nav", { "aria-label": t("frame.nav") }, tabs),
    h("span.space"),
    h("a.quiet", { href: "/docs" }, t("frame.api")),
    h(
      "button.quiet",
      { type: "button", id: "theme", onclick: turnTheme, title: t("frame.theme"), "aria-label": t("frame.theme") },
      "◐",
    ),
    h(
      "button.quiet",
      { type: "button", id: "language", lang: other, onclick: () => talk(other) },
      t("frame.other_language"),
    ),
  );
}

function talk(wanted) {
  speak(wanted);
  show();
}

/** In the colours that were chosen here, else in those that the system asks for. */
function wear() {
  const kept = localStorage.getItem(THEME);
  document.documentElement.dataset.theme = THEMES.includes(kept) ? kept : THEMES[Number(darkness.matches)];
}

function turnTheme() {
  const now = document.documentElement.dataset.theme;
  localStorage.setItem(
    THEME,
    THEMES.find((each) => each !== now),
  );
  wear();
  show();
}

/** The system asks for other colours: it was turned there, or evening came. */
function turned() {
  const before = document.documentElement.dataset.theme;
  wear();
  if (document.documentElement.dataset.theme !== before) show();
}

function showBanner() {
  banner.hidden = connection.isUp && !isKeyWanted;
  if (!connection.isUp) fill(banner, t("frame.offline"));
  else fill(banner, t("key.title"), " ", h("button", { type: "button", onclick: wantKey }, t("key.enter_one")));
}

function skip(event) {
  event.preventDefault(); // the address is the view's
  root.focus();
}

/** The server wants a key. Where none is entered a button in the banner asks again. */
function wantKey() {
  isKeyWanted = true;
  showBanner();
  askForKey(enterWithKey);
}

async function enterWithKey() {
  isKeyWanted = false;
  await live.refresh().catch(() => {}); // a wrong one is asked for again, what else is wrong the view says
  show();
}

wear();
document.body.append(
  h("a.skip", { href: "#view", onclick: skip }, t("frame.skip")),
  header,
  banner,
  root,
  h("footer.frame", { id: "footer" }),
);
connection.addEventListener("change", showBanner);
connection.addEventListener("key", wantKey);
darkness.addEventListener("change", turned);
window.addEventListener("hashchange", go);
window.addEventListener("online", () => live.refresh().catch(() => {}));
show();
live.start();
get("/version")
  .then(({ version }) => fill(document.getElementById("footer"), `Descent ${version}`))
  .catch(() => {});
