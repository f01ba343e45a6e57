# state: caches of types and of abstract classes

# %%
import abc, collections.abc, functools


class Base:
    def name(self):
        return "base"


class Derived(Base):
    pass


print(Derived().name())
Base.name = lambda self: "changed"
print(Derived().name())


class Mine:
    pass


print(isinstance(Mine(), collections.abc.Sized))
collections.abc.Sized.register(Mine)
print(isinstance(Mine(), collections.abc.Sized))


@functools.lru_cache
def cached(x):
    return x


cached(1)
cached(1)
print(cached.cache_info())


@functools.singledispatch
def show(x):
    return "any"


@show.register
def _(x: int):
    return "int"


print(show(1), show(""))
