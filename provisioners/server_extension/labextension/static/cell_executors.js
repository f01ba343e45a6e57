// Plug-ins that run the cells of notebooks and consoles. The Lab's own ones drop a cell that is run before its session
// has a kernel. The last plug-in that provides an executor wins. So roost provides none where another extension has
// disabled the Lab's own one, to run cells in its own way.

import { dropCells, makeExecutor } from "./waiting_cells.js";

const SETTING = "roost:waiting-cells"; // the plug-in that turns all of this off, if it is disabled
const ENDS = new Set([
  "console:interrupt-kernel",
  "console:restart-kernel",
  "notebook:interrupt-kernel",
  "notebook:restart-and-run-to-selected",
  "notebook:restart-clear-output",
  "notebook:restart-kernel",
  "notebook:restart-run-all",
]); // the commands after which no cell waits any more, also if the person cancels their dialog
const STYLE = `
  .roost-waits { margin-left: var(--jp-cell-prompt-width); padding: 4px 8px;
    color: var(--jp-ui-font-color2); font-size: var(--jp-ui-font-size1); }`;

export async function makePlugins(load) {
  const names = ["@jupyterlab/apputils", "@jupyterlab/coreutils", "@jupyterlab/notebook", "@jupyterlab/console"];
  const [apputils, coreutils, notebook, console] = await Promise.all(names.map(load));
  const offers = [
    ["notebook", notebook, notebook?.INotebookCellExecutor],
    ["console", console, console?.IConsoleCellExecutor],
  ];
  const isDisabled = (id) => coreutils.PageConfig.Extension.isDisabled(id);
  if (isDisabled(SETTING)) return [];
  const plugins = offers
    .filter(([kind, , token]) => token && !isDisabled(`@jupyterlab/${kind}-extension:cell-executor`))
    .map(([kind, { runCell }, token]) => makeExecutorPlugin(kind, token, makeExecutor(runCell, apputils.Dialog)));
  return plugins.length ? [...plugins, makeInterruptPlugin()] : [];
}

function makeExecutorPlugin(kind, token, executor) {
  return {
    id: `roost:${kind}-cells`,
    description: `Runs the cells of a ${kind}: those that are run before the session has a kernel wait for it.`,
    autoStart: true,
    provides: token,
    activate: () => executor,
  };
}

// The Lab's own commands do nothing as long as there is no kernel.
function makeInterruptPlugin() {
  return {
    id: SETTING,
    description: "Keeps cells that are run before the session has a kernel. An interrupt or a restart lets go of them.",
    autoStart: true,
    activate: (app) => {
      document.head.appendChild(document.createElement("style")).textContent = STYLE;
      app.commands.commandExecuted.connect((_, { id }) => {
        if (ENDS.has(id)) dropCells(app.shell.currentWidget?.sessionContext);
      });
    },
  };
}
