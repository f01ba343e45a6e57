"""The promises about leases when news are late, missing or wrong, in words."""

from __future__ import annotations

STAYS_RELEASED = (
    "a released lease does not come back, whatever the manager or the agent still shows or reports of it"
)
BRIDGES_GAPS = "a lease that nobody shows for less than its grace stays, and no client gets an event"
LOST_ONCE = "the holder of a lost lease gets the reason, once"
LOST_SILENTLY = "a lost lease that is found, and whose kernel nobody holds, is released without an event"
LEAVES_OTHERS = "a service sees the promises of another one, and neither releases nor loses its leases"
UNDOES_LATE = "a claim that is granted after its withdrawal is given back"
FOLLOWS_NODE = "a lease that comes back on another node counts there, and there alone"
