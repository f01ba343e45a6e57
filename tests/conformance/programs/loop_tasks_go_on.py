# state: tasks of the event loop between cells

# %%
import asyncio

done = []


async def work():
    for n in range(3):
        await asyncio.sleep(0.01)
        done.append(n)


task = asyncio.create_task(work(), name="work")

# %%
await task
print(done, task.get_name(), sorted(type(t).__name__ for t in asyncio.all_tasks())[:1])
