// A new job, a sweep, or a range test: three forms, each with what it comes to beside it.

import { get } from "./api.js";
import { catalogue } from "./catalogue.js";
import { fill, h } from "./dom.js";
import { isRangeTest } from "./encoding.js";
import { find } from "./find.js";
import { Form } from "./form.js";
import { lesson } from "./lesson.js";
import { wordsOf } from "./refusal.js";
import { Submission } from "./submit.js";
import { t } from "./text.js";
import { train, valuesOf } from "./train.js";

const WAYS = { train, lesson, rate: find };

/** What was chosen in a form, kept while the page is open: the view is mounted anew with each language. */
class Draft {
  values = new Map();
  sent = null; // the request that was sent and not answered, with its Idempotency-Key
  written = ""; // the query that says what is in `values`
}
const drafts = { train: new Draft(), lesson: new Draft(), rate: new Draft() };

export function mount(root, route) {
  const chosen = route.query.get("do") in WAYS ? route.query.get("do") : "train";
  const place = h("div", {}, h("p.muted", { role: "status" }, t("new.loading")));
  fill(root, h("h1.hidden-text", {}, t("title.new")), ways(chosen), place);
  let isGone = false;
  let submission = null;
  const show = async () => {
    try {
      const known = await catalogue();
      const draft = await drafted(chosen, route, known);
      if (!isGone) submission = build(place, { way: WAYS[chosen], draft, route, known });
    } catch (error) {
      if (!isGone) fill(place, failed(error, show));
    }
  };
  show();
  return () => {
    isGone = true;
    submission?.gone();
  };
}

function ways(chosen) {
  const cards = Object.keys(WAYS).map((way) =>
    h(
      "a.new-way",
      { href: way === "train" ? "#/new" : `#/new?do=${way}`, "aria-current": way === chosen ? "page" : null },
      h("strong", {}, t(`new.way.${way}`)),
      h("span.small", {}, t(`new.way.${way}.text`)),
    ),
  );
  return h("nav.new-ways", { "aria-label": t("new.ways") }, cards);
}

function failed(error, again) {
  const words = wordsOf(error, "new.not_loaded");
  return h(
    "div.error",
    { role: "alert" },
    h("p", {}, words),
    h("button", { type: "button", onclick: again }, t("new.again")),
  );
}

/** The draft of a form; a link that says what to train, and is not of our own writing, begins a new one. */
async function drafted(chosen, { query }, known) {
  const way = WAYS[chosen];
  const says = ["from", ...Object.keys(way.query)].some((name) => query.has(name));
  if (!says || drafts[chosen].written === String(query)) return drafts[chosen];
  const draft = new Draft();
  if (query.has("from")) {
    const { spec } = await get(`/jobs/${encodeURIComponent(query.get("from"))}`);
    if (isRangeTest(spec) && chosen === "train") location.replace(`#/new?do=rate&${query}`);
    draft.values = valuesOf(spec, known);
  }
  for (const [name, key] of Object.entries(way.query)) if (query.has(name)) draft.values.set(key, query.get(name));
  draft.written = String(query);
  drafts[chosen] = draft;
  return draft;
}

function build(place, { way, draft, route, known }) {
  const tell = () => {
    const said = Object.entries(way.query).map(([name, key]) => [name, draft.values.get(key)]);
    route.setQuery(Object.fromEntries(said));
    draft.written = String(new URLSearchParams(location.hash.split("?")[1]));
    submission.changed();
  };
  const form = new Form(draft.values, tell);
  const submission = new Submission(form, way, draft);
  fill(form.element, h("div.new-main", {}, way.fields(form, known)), submission.element);
  fill(place, form.element);
  tell();
  return submission;
}
