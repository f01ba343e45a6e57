# state: the recursion limit
# in ci: yes

# %%
import sys

print(sys.getrecursionlimit())


def depth(n):
    try:
        return depth(n + 1)
    except RecursionError:
        return n


print(depth(0) > 900)


def forever():
    return forever()


try:
    forever()
except RecursionError as error:
    print(str(error)[:32])
