# state: opentelemetry, its context and the random numbers of its ids
# needs: opentelemetry-sdk

# %%
import pathlib
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(BatchSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with trace.get_tracer("t").start_as_current_span("outer") as span:
    with trace.get_tracer("t").start_as_current_span("inner"):
        pass
provider.force_flush()
print(
    [each.name for each in exporter.get_finished_spans()], span.resource.attributes["telemetry.sdk.language"]
)
_ = pathlib.Path("id").write_text(str(span.context.trace_id))

# %% restart


# %%
import pathlib
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

print(
    str(TracerProvider().get_tracer("t").start_span("again").context.trace_id)
    != pathlib.Path("id").read_text()
)
