# state: sqlite's global state, and open databases

# %%
import sqlite3

with sqlite3.connect("data.db") as database:
    database.execute("create table t (x)")
    database.executemany("insert into t values (?)", [(n,) for n in range(100)])
print(database.execute("select sum(x) from t").fetchone(), sqlite3.threadsafety)
import threading

found = []


def read():
    other = sqlite3.connect("data.db")
    found.append(other.execute("select count(*) from t").fetchone()[0])
    other.close()


threads = [threading.Thread(target=read) for _ in range(4)]
for each in threads:
    each.start()
for each in threads:
    each.join()
print(found)
