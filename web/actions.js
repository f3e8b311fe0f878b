// What can be asked of a run as it stands, and what the server says to it.

import { post, remove } from "./api.js";
import { copied, copiedWords } from "./clipboard.js";
import { curl } from "./curl.js";
import { add, fill, h, renew } from "./dom.js";
import { isRangeTest } from "./encoding.js";
import { live } from "./live.js";
import { wordsOf } from "./refusal.js";
import { t } from "./text.js";

// By status, in the order of their buttons. `extend` and `delete` need more than a click.
const POSSIBLE = {
  queued: ["pause", "cancel"],
  running: ["pause", "cancel"],
  pausing: ["resume", "cancel"],
  paused: ["resume", "cancel"],
  cancelling: [],
  succeeded: ["extend", "delete"],
  failed: ["resume", "extend", "delete"],
  cancelled: ["resume", "extend", "delete"],
};
const MOST_EPOCHS = 1000; // of a run in all

/** The buttons of a run; they change with its status. */
export function actions(first) {
  const [row, said] = [h("div.row"), h("p.run-said.small", { role: "status" })];
  const tell = (words, isError = false) => {
    said.classList.toggle("error", isError);
    fill(said, words);
  };
  let job = first;
  const links = [
    h("a.button", { href: `#/new?from=${first.id}` }, t("run.again")),
    h("a.button", { href: `#/?on=${first.id}` }, t("run.compare")),
    copying(t("run.copy_link"), () => location.href, tell),
    copying(t("run.copy_curl"), () => curl("/jobs", job.spec), tell),
  ];
  const element = h("section.run-actions", { "aria-label": t("run.actions") }, row, said);
  return { element, update };

  function update(now) {
    job = now;
    links[0].classList.toggle("primary", hasDiverged(job));
    const names = POSSIBLE[job.status].filter((name) => !(name === "extend" && isRangeTest(job.spec)));
    const hadFocus = row.contains(document.activeElement);
    renew(row, [job.status], () => [names.map((name) => control(name, job, tell)), h("span.space"), links]);
    if (hadFocus && !row.contains(document.activeElement)) row.querySelector("button, input, a").focus();
  }
}

/** Then going on ends the same way, and another rate is what helps. */
const hasDiverged = (job) => job.error?.code === "diverged";

function control(name, job, tell) {
  if (name === "extend") return extension(job, tell);
  const words = t(`run.${name}`);
  if (name === "delete") return h("button.danger", { type: "button", onclick: () => askToDelete(job) }, words);
  const button = h("button", { type: "button" }, words);
  if (name === "resume" && !hasDiverged(job)) button.classList.add("primary");
  button.onclick = () => ask(`/jobs/${job.id}/${name}`, undefined, button, tell);
  return button;
}

/** Ask for a change, with the button held meanwhile (it keeps the focus); the run is read anew, so that what is seen follows. */
async function ask(path, body, button, tell) {
  if (button.ariaDisabled) return;
  button.ariaDisabled = "true";
  tell(t("run.asking"));
  try {
    const job = await post(path, body);
    await live.look(job.id);
    tell(t("run.asked", { status: t(`status.${job.status}`) }));
  } catch (error) {
    tell(wordsOf(error, "run.unreachable"), true);
  } finally {
    button.ariaDisabled = null;
  }
}

function extension(job, tell) {
  const most = MOST_EPOCHS - job.progress.epochs;
  if (most < 1) return null;
  const input = h("input.run-epochs", {
    type: "number", min: 1, max: most, value: 1, required: true, "aria-label": t("run.extend.epochs"),
  }); // biome-ignore format: one line of what it is
  const button = h("button", { type: "submit" }, t("run.extend.go"));
  const submit = (event) => {
    event.preventDefault();
    ask(`/jobs/${job.id}/resume`, { epochs: input.valueAsNumber }, button, tell);
  };
  return h("form.run-extend", { onsubmit: submit }, t("run.extend.before"), input, t("run.extend.after"), button);
}

// --- deleting ------------------------------------------------------------------------------------------------------------

function askToDelete(job) {
  const problem = h("p.error", { role: "alert", hidden: true });
  const dialog = h("dialog", { "aria-labelledby": "delete-title", onclose: () => dialog.remove() });
  const go = h("button.danger", { type: "button" }, t("run.delete.go"));
  go.onclick = async () => {
    go.disabled = true;
    try {
      await remove(`/jobs/${job.id}`);
    } catch (error) {
      problem.hidden = go.disabled = false;
      if (error.status !== 404) return fill(problem, refusalOf(error));
    }
    dialog.close();
    location.hash = "#/";
    live.forget(job.id);
  };
  add(
    dialog,
    h("h2", { id: "delete-title" }, t("run.delete.title")),
    h("p", {}, t("run.delete.text")),
    problem,
    h(
      "div.row",
      {},
      h("span.space"),
      h("button", { type: "button", onclick: () => dialog.close() }, t("run.delete.keep")),
      go,
    ),
  );
  document.body.append(dialog);
  dialog.showModal();
}

const refusalOf = (error) =>
  error.code === "job-in-use" ? `${t("run.delete.in_use")} ${error.message}` : wordsOf(error, "run.unreachable");

// --- copying -------------------------------------------------------------------------------------------------------------

function copying(words, textOf, tell) {
  const copy = async () => {
    const isCopied = await copied(textOf());
    tell(copiedWords(isCopied), !isCopied);
  };
  return h("button", { type: "button", onclick: copy }, words);
}
