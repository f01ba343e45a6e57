// The status of the kernel in sight: in JupyterLab's status bar, or in Notebook's menu.
// The texts are set as text, never as HTML.

import { loadReader } from "./server_reader.js";

const EVERY_MS = 5000;
const STYLE = `
  .roost-status { line-height: 24px; font-size: var(--jp-ui-font-size1); padding: 0 8px; align-self: center; }
  .roost-status a { color: inherit; text-decoration: none; white-space: nowrap; }
  .roost-status a:hover { text-decoration: underline; }`;

export async function makePlugins(load) {
  const [widgets, bar, read] = await Promise.all([
    load("@lumino/widgets"),
    load("@jupyterlab/statusbar"),
    loadReader(load),
  ]);
  document.head.appendChild(document.createElement("style")).textContent = STYLE;
  return [makeStatusPlugin(widgets, read, bar?.IStatusBar)];
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
