// What a form comes to, the button that sends it, and the command that does the same.

import { connection, Problem, post, Unreachable } from "./api.js";
import { copyOf } from "./clipboard.js";
import { curl } from "./curl.js";
import { fill, h } from "./dom.js";
import { live } from "./live.js";
import { worded, wordsOf } from "./refusal.js";
import { duration, number, t } from "./text.js";
import { shortened } from "./train.js";

const QUIET_MS = 250; // nothing typed for so long: ask what it comes to

/** A name for a request. `randomUUID` is there over HTTPS and on this machine alone; the page is served over plain HTTP too. */
const freshKey = () =>
  crypto.randomUUID?.() ??
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** What a field is called on the page: by its own label where another one stands beside it. */
const calledOf = ({ control, name }) => control.getAttribute("aria-label") ?? control.labels?.[0]?.textContent ?? name;

export class Submission {
  #stop = null;
  #isSending = false;
  #isGone = false;
  #preview = null;

  /** `way` is the form's own (train.js); `draft.sent` is the last request that was sent and not answered. */
  constructor(form, way, draft) {
    Object.assign(this, { form, way, draft });
    this.button = h("button.primary.new-submit", { type: "submit" });
    this.sum = h("div.new-sum");
    this.told = h("p.hidden-text", { role: "status" });
    this.problem = h("p.error", { role: "alert", hidden: true });
    this.command = h("pre.new-curl", { tabIndex: 0, "aria-label": t("new.curl") });
    this.element = h(
      "aside.card.new-go",
      { "aria-label": t("new.comes_to") },
      h("h2", {}, t("new.comes_to")),
      this.sum,
      this.told,
      this.problem,
      this.button,
      this.#curlBox(),
    );
    form.element.onsubmit = (event) => {
      event.preventDefault();
      this.#send();
    };
    connection.addEventListener("change", this.#isBack);
    this.#say();
  }

  #isBack = () => connection.isUp && this.#ask();

  #curlBox() {
    const copied = h("span.small.muted", { role: "status" });
    const copy = () => copyOf(this.command, copied);
    const head = h(
      "div.row",
      {},
      h("h3", {}, t("new.curl")),
      h("span.space"),
      copied,
      h("button.quiet", { type: "button", onclick: copy }, t("new.copy")),
    );
    return h("div.new-command", {}, head, this.command, h("p.new-hint", {}, t("new.curl_hint")));
  }

  get #body() {
    return shortened(this.form.body());
  }

  /** Something was changed: the command follows at once, what it comes to when nothing more is typed. */
  changed() {
    this.problem.hidden = true;
    fill(this.command, curl(this.way.path, this.#body));
    this.#ask();
  }

  async #ask() {
    this.#stop?.abort();
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    await new Promise((resolve) => setTimeout(resolve, QUIET_MS));
    if (signal.aborted || this.#isSending) return;
    const { missing } = this.form;
    if (missing.length) return fill(this.sum, h("p.muted", {}, t("new.missing", { names: missing.join(", ") })));
    try {
      this.#show(await post(`${this.way.path}?validate_only=true`, this.#body, { signal }));
    } catch (error) {
      if (signal.aborted) return;
      this.#preview = null;
      this.#say();
      if (error instanceof Problem) this.#refused(error, { isWhole: false });
      else fill(this.sum, h("p.muted", {}, t("new.unknown")));
    }
  }

  #show(preview) {
    this.#preview = preview;
    this.form.show([], { isWhole: false });
    const { total_steps: steps, points, jobs, seconds } = preview;
    const about = [
      jobs && ["new.sum.runs", number(jobs.length)],
      ["new.sum.steps", number(steps)],
      ["new.sum.points", number(points)],
      seconds && ["new.sum.seconds", duration(seconds)],
    ].filter(Boolean);
    const facts = about.map(([key, value]) => h("div", {}, h("dt", {}, t(key)), h("dd", {}, value)));
    fill(this.sum, h("dl", {}, facts));
    fill(this.told);
    this.way.show?.(this.form, preview);
    this.#say();
  }

  /** Errors beside their fields, the others at the button; a reader who does not see them is told. */
  #refused(problem, { isWhole }) {
    const { homeless, wrong } = this.form.show(problem.errors, { isWhole });
    const needed = problem.errors.length - homeless.length;
    fill(this.sum, h("p.muted", {}, needed ? t("new.needs", { n: needed }) : t("new.unknown")));
    const lines = problem.errors.length ? homeless.map(({ detail }) => worded(detail)) : [wordsOf(problem)];
    this.#complain(lines.join(" "));
    fill(
      this.told,
      wrong.map((field) => `${t("new.problem_of", { name: calledOf(field), problem: field.problem.textContent })} `),
    );
    if (isWhole) wrong[0]?.focus();
  }

  #complain(text) {
    fill(this.problem, text);
    this.problem.hidden = !text;
  }

  #say() {
    const { path } = this.way;
    const runs = this.#preview?.jobs?.length;
    const isLesson = path === "/sweeps" && !Object.keys(this.#body).length;
    const key = {
      "/jobs": "new.go.train",
      "/lr-range-tests": "new.go.find",
      "/sweeps": isLesson ? "new.go.lesson" : "new.go.sweep",
    }[path];
    const words = runs ? t(`${key}.runs`, { n: runs, runs: number(runs) }) : t(key);
    fill(this.button, this.#isSending ? t("new.going") : words);
    this.button.disabled = this.#isSending;
  }

  async #send() {
    if (this.#isSending) return;
    this.#isSending = true;
    this.#stop?.abort();
    this.#complain("");
    this.#say();
    let failure = null;
    try {
      const made = await post(this.way.path, this.#body, { headers: { "Idempotency-Key": this.#key() } });
      this.draft.sent = null;
      live.refresh().catch(() => {});
      if (!this.#isGone) location.hash = this.way.place(made);
    } catch (error) {
      failure = error;
    }
    this.#isSending = false;
    this.#say();
    if (failure) this.#failed(failure); // when the button can be pressed again, because it may get the focus
  }

  /** The same for a request that is sent again, so that it makes nothing twice; another one for another request. */
  #key() {
    const text = this.way.path + JSON.stringify(this.#body);
    if (this.draft.sent?.text !== text) this.draft.sent = { text, key: freshKey() };
    return this.draft.sent.key;
  }

  #failed(error) {
    if (error instanceof Problem) {
      if (error.code === "job-deleted") this.draft.sent = null;
      this.#refused(error, { isWhole: true });
    } else if (error instanceof Unreachable) this.#complain(wordsOf(error, "new.unreachable"));
    else throw error;
    if (!this.problem.hidden) this.problem.scrollIntoView({ block: "center" });
    if (!this.form.element.querySelector("[aria-invalid]")) this.button.focus({ preventScroll: true });
  }

  gone() {
    this.#isGone = true;
    connection.removeEventListener("change", this.#isBack);
    this.#stop?.abort();
  }
}
