"use strict";
// JupyterLab's and Notebook's part of roost: a module federation container, written by hand, without a build.
// The application calls `init` with its modules, then `get` for roost's plug-ins. Each part makes some of them.

(() => {
  const PARTS = ["kernel_status.js", "launcher_cards.js", "missed_outputs.js", "cell_executors.js"];
  const IMPORTED = ["server_reader.js", "waiting_cells.js", "kernel_wait.js"]; // by the parts; fetched at the same time
  const fetched = [...PARTS, ...IMPORTED].map((name) => import(new URL(name, document.currentScript.src)));
  let modules = {};

  // Returns a module of the application, or null if the application does not have it.
  async function load(name) {
    const versions = Object.values(modules[name] || {});
    const version = versions.find((each) => each.loaded) || versions[0];
    return version ? (await version.get())() : null;
  }

  async function makePlugins() {
    const parts = (await Promise.all(fetched)).slice(0, PARTS.length);
    const plugins = await Promise.all(parts.map((part) => part.makePlugins(load)));
    return plugins.flat();
  }

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB.roost = {
    init: (shared) => {
      modules = shared;
    },
    get: async () => {
      const plugins = await makePlugins();
      return () => ({ __esModule: true, default: plugins });
    },
  };
})();
