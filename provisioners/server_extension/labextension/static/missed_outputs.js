// The outputs that cells made while no page showed their notebook.

import { loadReader } from "./server_reader.js";

const FILL_EVERY_MS = 1000;

export async function makePlugins(load) {
  const [notebook, read] = await Promise.all([load("@jupyterlab/notebook"), loadReader(load)]);
  return notebook ? [makeFillPlugin(read, notebook.INotebookTracker)] : [];
}

// Puts outputs into the cells of a page that was loaded again while they ran. A changed cell is left alone.
async function fillCells(panel, read) {
  const id = panel.sessionContext.session?.kernel?.id;
  while (id && !panel.isDisposed && panel.sessionContext.session?.kernel?.id === id) {
    const { cells = {}, is_shared: isShared } = await read(`kernels/${encodeURIComponent(id)}/outputs`);
    if (isShared) return;
    let isRunning = false;
    for (const cell of panel.content.widgets) {
      const run = cells[cell.model.id];
      if (!run || cell.model.type !== "code" || cell.model.sharedModel.getSource() !== run.code) continue;
      if (cell.roostFilled === "done") continue;
      cell.model.outputs.fromJSON(run.outputs);
      cell.model.executionCount = run.is_done ? run.execution_count : null;
      cell.roostFilled = run.is_done ? "done" : "running";
      if (!run.is_done) cell.setPrompt("*");
      isRunning = isRunning || !run.is_done;
    }
    if (!isRunning) return;
    await new Promise((resolve) => setTimeout(resolve, FILL_EVERY_MS));
  }
}

function makeFillPlugin(read, INotebookTracker) {
  return {
    id: "roost:missed-outputs",
    description: "Puts outputs into the cells of a notebook that was opened again while they ran.",
    autoStart: true,
    requires: [INotebookTracker],
    activate: (app, tracker) => {
      const reader = read(app);
      const fill = (panel) =>
        fillCells(panel, reader).catch((problem) => console.warn("roost: missed outputs are not shown:", problem));
      const follow = async (panel) => {
        await Promise.all([panel.context.ready, panel.sessionContext.ready]);
        fill(panel);
      };
      tracker.widgetAdded.connect((_, panel) => follow(panel));
      tracker.forEach(follow);
    },
  };
}
