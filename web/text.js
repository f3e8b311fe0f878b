// The page's words in the reader's language. Both string files have the same keys (a test says so).

import en from "./en.js";
import zh from "./zh.js";

const STRINGS = { en, zh };
const LOCALES = { en: "en", zh: "zh-CN" };
const KEPT = "descent.language";

export const LANGUAGES = Object.keys(STRINGS);
export let language = stored() ?? (navigator.languages.some((each) => each.startsWith("zh")) ? "zh" : "en");

function stored() {
  const kept = localStorage.getItem(KEPT);
  return LANGUAGES.includes(kept) ? kept : null;
}

/** Choose a language, and remember it. Whoever shows text shows it anew. */
export function speak(wanted) {
  language = wanted;
  localStorage.setItem(KEPT, wanted);
  document.documentElement.lang = LOCALES[wanted];
}
document.documentElement.lang = LOCALES[language];

/** The words for a key; `{name}` in them is replaced. With `values.n` the key may have forms: `key.one`, `key.other`. */
export function t(key, values = {}) {
  const words = STRINGS[language];
  const form = "n" in values ? `${key}.${new Intl.PluralRules(LOCALES[language]).select(values.n)}` : key;
  const text = words[form] ?? words[`${key}.other`] ?? words[key];
  if (text === undefined) throw new Error(`no words for ${key}`);
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

/** Whether there are words for a key. */
export const has = (key) => key in STRINGS[language];

/** What the server says in both languages: `{en, zh}`. */
export const said = (both) => both?.[language] ?? "";

// --- numbers and times -------------------------------------------------------------------------------------------------

const formats = new Map(); // making one takes far longer than using it

/** `Intl[kind]` in the reader's language. */
function format(kind, options) {
  const key = `${language} ${kind} ${JSON.stringify(options)}`;
  if (!formats.has(key)) formats.set(key, new Intl[kind](LOCALES[language], options));
  return formats.get(key);
}

export const number = (value, digits = 0) =>
  format("NumberFormat", { maximumFractionDigits: digits, minimumFractionDigits: digits }).format(value);

/** A number as short as it is exact: `1,000`, `0.97`, `1e-12`. */
export const amount = (value) =>
  value !== 0 && Math.abs(value) < 1e-4
    ? value.toExponential()
    : value.toLocaleString(LOCALES[language], { maximumSignificantDigits: 17 });

/** An accuracy from 0 to 1: `98.79%`. */
export const percent = (value, digits = 2) =>
  value === null || value === undefined ? "–" : `${number(value * 100, digits)}%`;

/** A loss, to three or four places that count: `0.0312`, `2.303`, `1.2e-5`; a dash for null. */
export function loss(value) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e4)) return value.toExponential(2);
  return value.toFixed(Math.abs(value) < 0.1 ? 4 : 3);
}

/** Seconds as people say them: `3.2 s`, `1 min 20 s`, `2 h 5 min`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 59.5) return t("time.s", { s: number(seconds, seconds < 9.95 ? 1 : 0) });
  const whole = Math.round(seconds); // before it is divided: 119.6 s are 2 min
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) return t("time.min", { min: minutes, s: whole % 60 });
  return t("time.h", { h: Math.floor(minutes / 60), min: minutes % 60 });
}

/** When something was, for people: `5 min ago`. */
export function ago(iso, now = Date.now()) {
  const seconds = (Date.parse(iso) - now) / 1000;
  const relative = format("RelativeTimeFormat", { numeric: "auto", style: "short" });
  for (const [unit, length] of [
    ["day", 86400],
    ["hour", 3600],
    ["minute", 60],
  ]) {
    if (Math.abs(seconds) >= length) return relative.format(Math.trunc(seconds / length), unit);
  }
  return relative.format(Math.trunc(seconds), "second");
}

/** A time with its date, in full. */
export const moment = (iso) =>
  format("DateTimeFormat", { dateStyle: "medium", timeStyle: "medium" }).format(new Date(iso));

export const bytes = (count) => (count < 1e6 ? `${number(count / 1e3, 1)} kB` : `${number(count / 1e6, 1)} MB`);
