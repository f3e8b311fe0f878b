// The key that some servers require: asked for in a dialog, once at a time, and kept for this tab.

import { hasKey, setKey } from "./api.js";
import { add, h } from "./dom.js";
import { t } from "./text.js";

/** Ask for a key; `entered()` is called with a new one in place. Who closes the dialog can be asked again. */
export function askForKey(entered) {
  if (document.querySelector("dialog.key")) return;
  const input = h("input", {
    type: "password",
    name: "key",
    required: true,
    pattern: "[\\x21-\\x7e]+", // what a header can carry
    title: t("key.form"),
    autocomplete: "off",
    placeholder: "dsc_…",
    "aria-label": t("key.label"),
  });
  const dialog = h("dialog.key", { "aria-labelledby": "key-title", onclose: () => dialog.remove() });
  const enter = (event) => {
    event.preventDefault();
    setKey(input.value);
    dialog.close();
    entered();
  };
  add(
    dialog,
    h("h2", { id: "key-title" }, t("key.title")),
    hasKey() && h("p.error", { role: "alert" }, t("key.wrong")),
    h("p", {}, t("key.text")),
    h("form", { method: "dialog", onsubmit: enter }, input, h("button.primary", { type: "submit" }, t("key.enter"))),
  );
  document.body.append(dialog);
  dialog.showModal();
}
