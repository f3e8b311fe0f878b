// Curves as a table for a spreadsheet (RFC 4180).

import { get } from "./api.js";
import { labelOf } from "./encoding.js";
import { live } from "./live.js";

const TABLES = {
  loss: { columns: ["step", "epoch", "time_s", "loss"], rowsOf: pointsOf },
  accuracy: {
    columns: ["epoch", "train_loss", "valid_loss", "valid_accuracy", "learning_rate", "seconds"],
    rowsOf: epochsOf,
  },
};

/**
 * What the chart of `y` is made of, as a blob: every stored loss of these runs, those left out of the chart too, or their epochs.
 * Raises as `send` does.
 */
export async function csvOf(ids, y) {
  const { columns, rowsOf } = TABLES[y];
  const lines = [["job_id", "label", ...columns].join(",")];
  for (const id of ids) {
    const { spec } = live.jobs.get(id) ?? (await live.look(id)); // its curve may not be here yet
    const head = [id, spec.name ?? labelOf({ spec })].map(cell);
    for (const row of await rowsOf(id, columns)) lines.push([...head, ...row.map(cell)].join(","));
  }
  return new Blob([`${lines.join("\r\n")}\r\n`], { type: "text/csv;charset=utf-8" });
}

async function epochsOf(id, columns) {
  const { epochs } = await get(`/jobs/${id}/metrics`);
  return epochs.map((epoch) => columns.map((name) => epoch[name]));
}

async function pointsOf(id) {
  const points = [];
  for (let after = ""; ; ) {
    const page = await get(`/jobs/${id}/loss?shape=columns${after && `&after=${after}`}`);
    const { step, epoch, time_s, loss } = page.points;
    step.forEach((each, index) => {
      points.push([each, epoch[index], time_s[index], loss[index]]);
    });
    if (!page.has_more) return points;
    after = page.next;
  }
}

/** One value. A text that a spreadsheet would take for a formula gets an apostrophe before it. */
function cell(value) {
  if (typeof value === "number") return String(value);
  const text = value === null ? "" : /^[=+\-@\t\r]/.test(value) ? `'${value}` : value;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
