//! With what a trace may begin.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry::trace::{
    Link, SpanContext, SpanKind, TraceContextExt as _, TraceId, TraceState,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, SamplingResult, ShouldSample};

/// What is fetched with nobody waiting for it is worth a trace of its own.
pub(super) const FLIGHT: &str = "engine.flight";

/// Requests a second that are traced because others say so: enough for who looks at his own. Whoever may ask
/// us for anything may say so.
const LED_MAX: u32 = 20;

/// Leaves out what goes on in the background, such as each call to the index: a trace begins with a request
/// or a flight.
#[derive(Clone, Debug)]
pub(super) struct Beginnings {
    own: Sampler,
    led: Arc<Mutex<Led>>,
}

/// What was traced of late because others say so.
#[derive(Debug)]
struct Led {
    since: Instant,
    count: u32,
}

impl Beginnings {
    /// With this word on what may begin.
    pub(super) fn new(own: Sampler) -> Self {
        Self { own, led: Arc::new(Mutex::new(Led { since: Instant::now(), count: 0 })) }
    }

    /// Whether one more may be traced because others say so.
    fn may_be_led(&self) -> bool {
        let mut led = self.led.lock().unwrap_or_else(PoisonError::into_inner);
        if led.since.elapsed() >= Duration::from_secs(1) {
            *led = Led { since: Instant::now(), count: 0 };
        }
        led.count = led.count.saturating_add(1);
        led.count <= LED_MAX
    }
}

impl ShouldSample for Beginnings {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let above = parent.map(|parent| parent.span().span_context().clone());
        let above = above.filter(SpanContext::is_valid);
        let is_left_out = match &above {
            None => *kind != SpanKind::Server && name != FLIGHT,
            // What is part of what was left out, be the sampler one that does not look at parents.
            Some(above) => !above.is_remote() && !above.is_sampled(),
        };
        if is_left_out {
            return SamplingResult {
                decision: SamplingDecision::Drop,
                attributes: Vec::new(),
                trace_state: TraceState::default(),
            };
        }
        let is_led = above.is_some_and(|above| above.is_remote() && above.is_sampled());
        let parent = if is_led && !self.may_be_led() { None } else { parent };
        self.own.should_sample(parent, trace, name, kind, attributes, links)
    }
}
