# state: the random numbers of OpenSSL
# in ci: yes

# %%
import pathlib, ssl

_ = pathlib.Path("drawn").write_text(ssl.RAND_bytes(8).hex())

# %% restart


# %%
import pathlib, ssl

print(ssl.RAND_bytes(8).hex() != pathlib.Path("drawn").read_text(), ssl.RAND_status())
import hashlib, hmac

print(
    hashlib.sha256(b"a").hexdigest()[:8],
    hmac.new(b"k", b"m", "sha256").hexdigest()[:8],
    hashlib.blake2b(b"a").hexdigest()[:8],
)
