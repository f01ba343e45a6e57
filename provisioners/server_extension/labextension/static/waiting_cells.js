// The cells that a person has run before their session has a kernel. They run in this order, once it has one.

import { waitForKernel } from "./kernel_wait.js";

const NOTE_AFTER_MS = 500;
const NOTE = "Cells run as soon as the session with its kernel has started.";
const lines = new Map(); // the waiting cells of each session

// Returns a cell executor. It calls `runCell` of the Lab at once if the session has a kernel, and later otherwise.
export function makeExecutor(runCell, Dialog) {
  return Object.freeze({
    runCell: (options) => {
      const { cell, sessionContext: session } = options;
      if (cell.model.type !== "code" || !session || session.isTerminating) return runCell(options);
      if (!lines.has(session)) {
        if (session.session?.kernel) return runCell(options);
        new WaitingCells(session, runCell, Dialog).start();
      }
      return lines.get(session).add(options);
    },
  });
}

// Lets go of the cells that wait for a session. The person has interrupted them.
export function dropCells(session) {
  lines.get(session)?.end(false);
}

class WaitingCells {
  constructor(session, runCell, Dialog) {
    Object.assign(this, { session, runCell, Dialog, runs: [] });
  }

  async start() {
    lines.set(this.session, this);
    let hasKernel = false;
    try {
      const outcome = await waitForKernel(this.session, this.Dialog);
      if (outcome === "ask" && this.runs.length) await askForKernel(this.runs[0].options);
      hasKernel = Boolean(this.session.session?.kernel);
    } finally {
      this.end(hasKernel);
    }
  }

  // Returns a promise of what `runCell` returns for this cell.
  add(options) {
    const run = new WaitingRun(options);
    if (!this.runs.length) run.explain();
    this.runs.push(run);
    return run.done;
  }

  end(hasKernel) {
    if (lines.get(this.session) === this) lines.delete(this.session);
    for (const run of this.runs.splice(0)) run.end(hasKernel ? this.runCell : null);
  }
}

// One cell that waits, with the code that it had when it was run.
class WaitingRun {
  constructor(options) {
    this.options = options;
    this.id = options.cell.model.id;
    this.parent = options.cell.parent;
    this.console = findConsole(this.parent);
    this.code = options.cell.model.sharedModel.getSource();
    this.done = new Promise((resolve) => {
      this.resolve = resolve;
    });
    clear(options.cell);
    mark(options.cell, "*");
  }

  // Shows below the cell why it waits, unless that is soon over.
  explain() {
    this.note = document.createElement("div");
    this.note.className = "roost-waits";
    this.note.textContent = NOTE;
    this.timer = setTimeout(() => this.options.cell.node.append(this.note), NOTE_AFTER_MS);
  }

  // Runs the cell. Without `runCell` the cell is not run, as if the person had not run it.
  end(runCell) {
    clearTimeout(this.timer);
    this.note?.remove();
    const cell = this.findCell();
    if (!cell && this.console && !this.console.isDisposed) {
      if (runCell) this.console.inject(this.code);
      // Without `resolve`: the console would look into the cell that it has disposed.
    } else if (!cell) {
      this.resolve(false);
    } else if (runCell) {
      this.resolve(withSource(cell.model.sharedModel, this.code, () => runCell({ ...this.options, cell })));
    } else {
      mark(cell, "");
      this.resolve(false);
    }
  }

  // Returns the cell, or null if the person has deleted it. The Lab makes a new widget for a cell that is moved.
  findCell() {
    const { cell } = this.options;
    if (!cell.isDisposed) return cell;
    const found = this.parent?.widgets?.find((each) => each.model?.id === this.id);
    return found?.model.type === "code" ? found : null;
  }
}

// Returns the console that a widget is in, or null. A console disposes all its cells when its kernel changes.
function findConsole(widget) {
  while (widget && !widget.inject) widget = widget.parent;
  return widget;
}

// Starts a kernel, or asks for one, as `runCell` does: once for all cells that wait. Consoles do not ask.
async function askForKernel({ sessionContext: session, sessionDialogs }) {
  if (!sessionDialogs) return;
  if (!session.isReady) await session.initialize(); // if the Lab has failed before: no kernel can be chosen without it
  if (!session.hasNoKernel) return;
  const mustChoose = await session.startKernel();
  if (mustChoose) await sessionDialogs.selectKernel(session);
}

// Calls `run` while the cell answers with `code`, so that a cell that was edited meanwhile keeps the person's text.
// `runCell` reads the code before it first waits.
function withSource(sharedModel, code, run) {
  if (sharedModel.getSource() === code) return run();
  sharedModel.getSource = () => code;
  try {
    return run();
  } finally {
    delete sharedModel.getSource;
  }
}

function clear(cell) {
  cell.model.sharedModel.transact(() => cell.model.clearExecution(), false);
}

// Sets the prompt to `[*]` or `[ ]`. The Lab's model has a state for it since 4.3.
function mark(cell, prompt) {
  if ("executionState" in cell.model) {
    cell.model.executionState = prompt ? "running" : "idle";
  } else {
    cell.setPrompt(prompt);
  }
}
