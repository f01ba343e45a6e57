# state: generators that modules make at their import

# %%
import pathlib


def draw():
    import email.utils, http.cookiejar, multiprocessing.connection, random, secrets, tempfile, email.generator, string

    return [
        random.SystemRandom().random(),
        secrets.choice(range(10**9)),
        email.generator._make_boundary(),
        tempfile._RandomNameSequence().rng.random(),
        next(tempfile._get_candidate_names()),
        random.Random().random(),
        email.utils.make_msgid(),
    ]


import json

_ = pathlib.Path("drawn").write_text(json.dumps(draw()))

# %% restart


# %%
import json, pathlib


def draw():
    import email.utils, http.cookiejar, multiprocessing.connection, random, secrets, tempfile, email.generator, string

    return [
        random.SystemRandom().random(),
        secrets.choice(range(10**9)),
        email.generator._make_boundary(),
        tempfile._RandomNameSequence().rng.random(),
        next(tempfile._get_candidate_names()),
        random.Random().random(),
        email.utils.make_msgid(),
    ]


print([one != two for one, two in zip(draw(), json.loads(pathlib.Path("drawn").read_text()))])
