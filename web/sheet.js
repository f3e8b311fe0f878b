// The paper with all that puts something on it: the pen and its width, a picture from elsewhere, an example.

import { fill, h } from "./dom.js";
import { examplesOf } from "./examples.js";
import { Pad } from "./pad.js";
import { t } from "./text.js";

const PICTURES = ["image/png", "image/jpeg"];
let penWidth = 0.08; // stays when the view is shown anew

export const button = (label, onclick) => h("button", { type: "button", onclick }, label);
export const heading = (number, name) =>
  h("h2", { id: `draw-${name}` }, h("span.step", {}, number), t(`draw.title.${name}`));

export class Sheet {
  #stop = new AbortController();

  /** `speak(words)` tells those who do not see it. */
  constructor(drawing, speak) {
    this.drawing = drawing;
    this.canvas = h("canvas.paper", {
      tabIndex: 0,
      role: "application",
      "aria-label": t("draw.paper"),
      "aria-describedby": "draw-keys",
    });
    this.hint = h("span.paper-hint", { "aria-hidden": "true" }, t("draw.hint"));
    this.note = h("p.error.small", { hidden: true, role: "alert" });
    this.examples = h("div.examples");
    this.undo = button(t("draw.undo"), () => drawing.undo());
    this.clear = button(t("draw.clear"), () => drawing.clear());
    this.element = this.#section();
    this.pad = new Pad(this.canvas, drawing, { onPen: (isDown) => speak(t(isDown ? "draw.pen_down" : "draw.pen_up")) });
    this.pad.penWidth = penWidth;
    const { signal } = this.#stop;
    drawing.addEventListener("change", () => this.#changed(), { signal });
    document.addEventListener("paste", (event) => this.#pasted(event), { signal });
    this.#changed();
  }

  gone() {
    this.#stop.abort();
    this.pad.gone();
  }

  /** Offer examples for models of these data sets. */
  suggest(datasets, models) {
    const rows = datasets.map((dataset) => {
      const names = models.classesOf(dataset);
      const chips = examplesOf(dataset).map(([number, items]) =>
        h("button.example", { type: "button", onclick: () => this.drawing.replace(items) }, names[number]),
      );
      const label = h("span.small.muted", {}, t("draw.examples"));
      return h("div.row", { role: "group", "aria-label": t("draw.examples") }, label, chips);
    });
    fill(this.examples, rows);
  }

  #changed() {
    const { isEmpty, canUndo } = this.drawing;
    this.hint.hidden = !isEmpty;
    this.clear.disabled = isEmpty;
    this.undo.disabled = !canUndo;
  }

  #section() {
    const isOver = (is) => section.classList.toggle("over", is);
    const section = h(
      "section.sheet",
      {
        "aria-labelledby": "draw-paper",
        ondragover: (event) => {
          event.preventDefault();
          isOver(true);
        },
        ondragleave: () => isOver(false),
        ondrop: (event) => {
          event.preventDefault();
          isOver(false);
          this.#take(event.dataTransfer.files[0]);
        },
      },
      heading(1, "paper"),
      h("div.paper-frame", {}, this.canvas, this.hint),
      h("div.tools", {}, h("div.row", {}, this.undo, this.clear, this.#file()), this.#width()),
      this.note,
      this.examples,
      h("p.small.muted.keys", { id: "draw-keys" }, t("draw.keys")),
    );
    return section;
  }

  #width() {
    const width = h("input", { type: "range", min: 0.03, max: 0.16, step: 0.01, value: penWidth, id: "draw-pen" });
    width.oninput = () => {
      penWidth = this.pad.penWidth = Number(width.value);
      this.pad.draw();
    };
    return h("div.row", {}, h("label.small", { htmlFor: "draw-pen" }, t("draw.pen")), width);
  }

  // --- pictures from elsewhere -------------------------------------------------------------------------------------------

  #file() {
    const file = h("input.hidden-text", { type: "file", accept: PICTURES.join(","), id: "draw-file" });
    file.onchange = () => {
      this.#take(file.files[0]);
      file.value = ""; // the same once more is a change as well
    };
    return [file, h("label.button", { htmlFor: "draw-file" }, t("draw.upload"))];
  }

  #pasted(event) {
    const picture = [...(event.clipboardData?.files ?? [])].find((file) => file.type.startsWith("image/"));
    if (!picture) return;
    event.preventDefault();
    this.#take(picture);
  }

  async #take(file) {
    if (!file) return;
    this.note.hidden = true;
    try {
      if (!PICTURES.includes(file.type)) throw new Error(file.type);
      const picture = await createImageBitmap(file);
      this.drawing.replace([{ picture, width: picture.width, height: picture.height }]);
    } catch {
      this.note.hidden = false;
      fill(this.note, t("draw.no_picture", { name: file.name }));
    }
  }
}
