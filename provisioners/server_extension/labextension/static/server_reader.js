// Reads the texts of roost's server extension (kernel_status.py).

export async function loadReader(load) {
  const { ServerConnection } = await load("@jupyterlab/services");
  return (app) => makeReader(ServerConnection, app.serviceManager.serverSettings);
}

function makeReader(ServerConnection, settings) {
  return async (path) => {
    const answer = await ServerConnection.makeRequest(`${settings.baseUrl}roost/api/${path}`, {}, settings);
    if (answer.status === 404) return { text: "", detail: "" }; // the kernel was shut down
    if (!answer.ok) throw new Error(`the server answered ${answer.status}`);
    return answer.json();
  };
}
