"""The journal: what each kernel has published, within bounds, for clients that come back.

    kernel ── IOPub ──> subscribe ──> Journal: the latest messages, in memory             subscription, journal
       <── shell ─── StateQuestion: does a cell of the time before this agent run?        state_question
                                         │
    client <── service <── Agent <── Kernels (`launch`): a page of the journal

The journal ends with the agent.
"""
