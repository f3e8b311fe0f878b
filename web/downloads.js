// What can be taken away from a run: its weights in four formats, and its losses.

import { download } from "./api.js";
import { fill, h, renew } from "./dom.js";
import { wordsOf } from "./refusal.js";
import { bytes, t } from "./text.js";

const MODELS = { pdparams: "pdparams", safetensors: "safetensors", inference: "inference.zip", onnx: "onnx" };
const LOSSES = { csv: "csv", ndjson: "ndjson" };

export function downloads(id) {
  const [models, note] = [h("ul.run-files"), h("p.muted.small")];
  const losses = Object.entries(LOSSES).map(([format, ending]) =>
    fileOf(`loss.${ending}`, t(`run.file.${format}`), `/jobs/${id}/loss?format=${format}`, `${id}-loss.${ending}`),
  );
  const element = h("section.card", {}, h("h2", {}, t("run.downloads")), note, models, h("ul.run-files", {}, losses));
  return { element, update };

  function update({ model, terminal }) {
    const has = model.ready;
    renew(note, [has, model.partial, terminal], () => noteOf(has, model.partial, terminal));
    note.hidden = !note.textContent;
    renew(models, [has, model.size_bytes], () =>
      Object.entries(MODELS).map(([format, ending]) => {
        const size = format === "safetensors" && model.size_bytes ? ` · ${bytes(model.size_bytes)}` : "";
        const path = `/jobs/${id}/model?format=${format}`;
        return fileOf(`model.${ending}`, t(`run.file.${format}`) + size, path, `${id}.${ending}`, !has);
      }),
    );
  }
}

function noteOf(has, isPartial, isTerminal) {
  if (isPartial) return t("run.model.partial");
  if (has) return "";
  return isTerminal ? t("run.model.none") : t("run.model.later");
}

/** A file to take: its button is held while the server makes it, and what goes wrong stands below. */
function fileOf(label, what, path, name, disabled = false) {
  const problem = h("p.error.small", { role: "alert", hidden: true });
  const button = h("button", { type: "button", disabled }, label);
  button.onclick = async () => {
    problem.hidden = true;
    button.disabled = true;
    button.setAttribute("aria-busy", "true");
    fill(button, t("run.file.busy"));
    try {
      await download(path, name);
    } catch (error) {
      problem.hidden = false;
      fill(problem, wordsOf(error));
    } finally {
      button.disabled = false;
      button.removeAttribute("aria-busy");
      fill(button, label);
      if (document.activeElement === document.body) button.focus(); // it lost the focus when it was held
    }
  };
  return h("li", {}, button, h("span.small.muted", {}, what), problem);
}
