// How curves are drawn: which axes, logarithms, how smooth. Each control changes what is shown, and so the address.

import { fill, h } from "./dom.js";
import { number, t } from "./text.js";
import { explained } from "./tip.js";

export class Controls {
  element = h("div.controls", { role: "group", "aria-label": t("runs.controls") });
  #showing;
  #onChange;

  constructor(showing, onChange) {
    this.#showing = showing;
    this.#onChange = onChange;
    this.#show();
  }

  #show() {
    const { y } = this.#showing;
    fill(
      this.element,
      this.#choice("y", ["loss", "accuracy"]),
      this.#choice("x", ["step", "epoch", "time"]),
      this.#log("y", y !== "loss"),
      this.#log("x", false),
      this.#smoothing(y !== "loss"),
    );
  }

  #set(changes) {
    this.#showing.set(changes);
    this.#onChange();
  }

  /** Buttons of which one is pressed. A zoom of that axis is over: it was of another one. */
  #choice(name, values) {
    const buttons = values.map((value) =>
      h(
        "button",
        {
          type: "button",
          value,
          "aria-pressed": String(this.#showing[name] === value),
          onclick: () => {
            this.#set({ [name]: value, [`z${name}`]: "" });
            this.#show();
            this.element.querySelector(`[data-name=${name}] [value=${value}]`).focus();
          },
        },
        t(`runs.${name}.${value}`),
      ),
    );
    return h(
      "div.choice",
      { role: "group", "aria-label": t(`runs.${name}`), dataset: { name } },
      h("span.small.muted", { "aria-hidden": "true" }, t(`runs.${name}`)),
      h("span.buttons", {}, buttons),
    );
  }

  #log(axis, disabled) {
    const checked = this.#showing.isLog(axis);
    const turn = ({ target }) => this.#set({ [`log${axis}`]: target.checked ? "1" : "0", [`z${axis}`]: "" });
    const box = h("input", { type: "checkbox", name: `log${axis}`, checked, disabled, onchange: turn });
    const label = h("label.row", {}, box, t(`runs.log${axis}`));
    return explained(label, box, t(`runs.log${axis}`), t(`runs.log${axis}_about`));
  }

  #smoothing(disabled) {
    const words = () => (this.#showing.weight ? number(this.#showing.weight, 2) : t("runs.off"));
    const told = h("output.small.muted", {}, words());
    const oninput = ({ target }) => {
      this.#set({ smooth: target.value });
      fill(told, words());
    };
    const range = { type: "range", name: "smooth", min: 0, max: 0.99, step: 0.01, disabled, oninput };
    const slider = h("input", { ...range, value: this.#showing.weight });
    const label = h("label.row", {}, t("runs.smooth"), slider, told);
    return explained(label, slider, t("runs.smooth"), t("runs.smooth_about"));
  }
}
