// Texts for the clipboard, and what to say of it.

import { fill, h } from "./dom.js";
import { t } from "./text.js";

/** Put a text on the clipboard; returns whether it is there. The new way is not where the page comes without TLS from elsewhere. */
export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return copiedTheOldWay(text);
  }
}

function copiedTheOldWay(text) {
  const focused = document.activeElement;
  const area = h("textarea.hidden-text", { value: text });
  document.body.append(area);
  area.select();
  const isCopied = document.execCommand("copy");
  area.remove();
  focused?.focus({ preventScroll: true });
  return isCopied;
}

/** What to say of it. */
export const copiedWords = (isCopied) => t(isCopied ? "copy.done" : "copy.not");

/** Copy what an element says, and say so in `told`; where the browser lets us not, it is selected. */
export async function copyOf(element, told) {
  const isCopied = await copied(element.textContent);
  if (!isCopied) getSelection().selectAllChildren(element);
  fill(told, t(isCopied ? "copy.done" : "copy.selected"));
}
