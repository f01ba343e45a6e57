"use strict";
// JupyterLab's and Notebook's part of roost: the status of the kernel in sight, and what the launcher's cards say.
// A module federation container, written by hand: the application calls `init` with its modules, then `get`.
// The texts come from roost's server extension (kernel_status.py). They are set as text, never as HTML.

(() => {
  const EVERY_MS = 5000;
  const FILL_EVERY_MS = 1000;
  const STYLE = `
    .roost-status { line-height: 24px; font-size: var(--jp-ui-font-size1); padding: 0 8px; align-self: center; }
    .roost-status a { color: inherit; text-decoration: none; white-space: nowrap; }
    .roost-status a:hover { text-decoration: underline; }`;
  let modules = {};

  // Returns a module of the application, or null if the application does not have it.
  async function load(name) {
    const versions = Object.values(modules[name] || {});
    const version = versions.find((each) => each.loaded) || versions[0];
    return version ? (await version.get())() : null;
  }

  function makeReader(ServerConnection, settings) {
    return async (path) => {
      const answer = await ServerConnection.makeRequest(`${settings.baseUrl}roost/api/${path}`, {}, settings);
      if (answer.status === 404) return { text: "", detail: "" }; // the kernel was shut down
      if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
      return answer.json();
    };
  }

  // The status of the kernel of the notebook or console in sight. It is empty for kernels that are not roost's.
  class KernelStatus {
    constructor(read, address) {
      this.read = read;
      this.node = document.createElement("div");
      this.node.className = "roost-status";
      this.link = document.createElement("a");
      this.link.href = address;
      this.link.target = "_blank";
      this.link.rel = "noopener";
      this.node.append(this.link);
      this.session = null;
      this.newest = 0;
      setInterval(() => document.hidden || this.isForeign || this.update(), EVERY_MS);
    }

    follow(widget) {
      const session = widget?.sessionContext?.statusChanged ? widget.sessionContext : null;
      if (session === this.session) return;
      this.session = session;
      if (session && !session.isFollowedByRoost) {
        session.isFollowedByRoost = true;
        for (const signal of [session.kernelChanged, session.statusChanged]) {
          signal.connect(() => session === this.session && this.update());
        }
      }
      this.update();
    }

    async update() {
      const id = this.session?.session?.kernel?.id ?? this.session?.kernelSeenByRoost; // a culled kernel has a reason
      if (this.session) this.session.kernelSeenByRoost = id;
      const own = ++this.newest;
      let status = { text: "", detail: "" };
      if (id) {
        try {
          status = await this.read(`kernels/${encodeURIComponent(id)}`);
        } catch (problem) {
          status.detail = String(problem.message);
        }
      }
      if (own !== this.newest) return;
      this.isForeign = Boolean(id) && !status.text && !status.detail;
      this.link.textContent = status.text;
      this.node.title = status.detail;
    }
  }

  function makeStatusPlugin({ Widget }, read, IStatusBar) {
    return {
      id: "roost:kernel-status",
      description: "Shows where the kernel in sight runs, and what it uses.",
      autoStart: true,
      optional: IStatusBar ? [IStatusBar] : [],
      activate: (app, statusBar) => {
        const status = new KernelStatus(read(app), `${app.serviceManager.serverSettings.baseUrl}roost/`);
        const item = new Widget({ node: status.node });
        item.id = "roost-status";
        if (statusBar) {
          statusBar.registerStatusItem("roost:kernel-status", { item, align: "left", rank: 900 });
        } else {
          app.shell.add(item, "menu", { rank: 9000 }); // Notebook has no status bar
        }
        app.shell.currentChanged?.connect(() => status.follow(app.shell.currentWidget));
        app.restored.then(() => status.follow(app.shell.currentWidget));
      },
    };
  }

  function makeCardsPlugin(read) {
    return {
      id: "roost:launcher-cards",
      description: "Shows on the launcher's cards what kernels ask for.",
      autoStart: true,
      activate: (app) => {
        const style = document.head.appendChild(document.createElement("style"));
        const draw = async () => {
          const { cards = [] } = await read(app)("cards");
          style.textContent = cards
            .map(({ title, text }) => `.jp-LauncherCard[title="${CSS.escape(title)}"]::after {
              content: "${CSS.escape(text)}"; display: block; padding: 0 4px 4px; text-align: center;
              font-size: var(--jp-ui-font-size0); color: var(--jp-ui-font-color2); }`)
            .join("\n");
        };
        const drawQuietly = () => draw().catch((problem) => console.warn("roost: no texts for the cards:", problem));
        app.serviceManager.kernelspecs.specsChanged.connect(drawQuietly);
        drawQuietly();
      },
    };
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

  async function makePlugins() {
    const [widgets, services, bar, notebook] = await Promise.all(
      ["@lumino/widgets", "@jupyterlab/services", "@jupyterlab/statusbar", "@jupyterlab/notebook"].map(load),
    );
    document.head.appendChild(document.createElement("style")).textContent = STYLE;
    const read = (app) => makeReader(services.ServerConnection, app.serviceManager.serverSettings);
    const plugins = [makeStatusPlugin(widgets, read, bar?.IStatusBar), makeCardsPlugin(read)];
    return notebook ? [...plugins, makeFillPlugin(read, notebook.INotebookTracker)] : plugins;
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
