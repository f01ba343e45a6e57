// How long a cell waits: until its session has a kernel, or until nothing is under way that would bring one.
//
// The Lab initialises each session once. A public attribute tells neither when this begins nor each way in which it
// ends. So the wait watches for what these ends show: a kernel, a start that fails, or a dialog that asks for a kernel.

const initialised = new WeakSet(); // sessions whose initialisation has ended

// Returns "kernel" if the session has one, "none" if a start has failed or nobody has chosen a kernel, and "ask" if
// no kernel is being started and nobody has been asked for one. `session` is the Lab's session context.
export async function waitForKernel(session, Dialog) {
  let isStarting = false;
  let hasStarted = false;
  let hasAsked = false;
  const follow = (_, status) => {
    isStarting = status === "starting";
    hasStarted ||= isStarting;
  };
  session.statusChanged.connect(follow);
  session.ready.then(() => initialised.add(session));
  await undefined; // if the session is ready already, it is in `initialised` from here on
  const wasInitialised = initialised.has(session);
  try {
    while (!session.isDisposed) {
      if (session.session?.kernel) return "kernel";
      if (isStarting || !session.hasNoKernel) {
        hasStarted = true;
      } else if (hasStarted) {
        return "none";
      } else if (wasInitialised) {
        return "ask";
      } else if (initialised.has(session)) {
        return mayStart(session.kernelPreference) ? "none" : "ask";
      } else if (Dialog.tracker.size > 0) {
        hasAsked = true;
      } else if (hasAsked) {
        return "none";
      }
      await nextChange(session, Dialog);
      await new Promise((resolve) => setTimeout(resolve)); // the Lab acts on the change first
    }
    return "none";
  } finally {
    session.statusChanged.disconnect(follow);
    initialised.add(session);
  }
}

// Whether the Lab itself starts a kernel for a new session.
function mayStart({ shouldStart, canStart }) {
  return shouldStart !== false && canStart !== false;
}

function nextChange(session, Dialog) {
  const signals = [session.statusChanged, session.kernelChanged, session.sessionChanged, session.disposed];
  signals.push(Dialog.tracker.widgetAdded);
  Dialog.tracker.forEach((dialog) => signals.push(dialog.disposed));
  return new Promise((resolve) => {
    const stop = () => {
      for (const signal of signals) signal.disconnect(stop);
      resolve();
    };
    for (const signal of signals) signal.connect(stop);
    if (!initialised.has(session)) session.ready.then(stop);
  });
}
