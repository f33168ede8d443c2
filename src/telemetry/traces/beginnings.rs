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

#[cfg(test)]
mod tests {
    use super::*;
    use opentelemetry::trace::{SpanId, TraceFlags};

    const TRACE: TraceId = TraceId::from_bytes([1; 16]);

    fn is_traced(sampler: &Beginnings, kind: &SpanKind, above: Option<(bool, bool)>) -> bool {
        let parent = above.map(|(is_remote, is_sampled)| {
            let flags = TraceFlags::default().with_sampled(is_sampled);
            let id = SpanId::from_bytes([1; 8]);
            let above = SpanContext::new(TRACE, id, flags, is_remote, TraceState::default());
            Context::new().with_remote_span_context(above)
        });
        let result = sampler.should_sample(parent.as_ref(), TRACE, "any", kind, &[], &[]);
        result.decision == SamplingDecision::RecordAndSample
    }

    #[test]
    fn what_is_part_of_nothing_is_nothing() {
        for own in [Sampler::AlwaysOn, Sampler::TraceIdRatioBased(1.0)] {
            let sampler = Beginnings::new(own);
            assert!(is_traced(&sampler, &SpanKind::Server, None));
            assert!(!is_traced(&sampler, &SpanKind::Client, None), "it goes on in the background");
            assert!(is_traced(&sampler, &SpanKind::Client, Some((false, true))));
            assert!(!is_traced(&sampler, &SpanKind::Client, Some((false, false))), "an orphan");
            // These do not look at what clients say.
            assert!(is_traced(&sampler, &SpanKind::Server, Some((true, false))));
        }
    }

    #[test]
    fn who_says_so_too_often_is_like_any_other() {
        let by_parent = |root| Beginnings::new(Sampler::ParentBased(Box::new(root)));
        let ask = |sampler: &Beginnings| is_traced(sampler, &SpanKind::Server, Some((true, true)));
        let begun = Instant::now();
        let sampler = by_parent(Sampler::AlwaysOff);
        let traced = (0..10 * LED_MAX).filter(|_| ask(&sampler)).count() as u64;
        let bound = u64::from(LED_MAX) * (begun.elapsed().as_secs() + 2);
        assert!((u64::from(LED_MAX)..=bound).contains(&traced), "{traced}");
        let sampler = by_parent(Sampler::AlwaysOn);
        assert!((0..10 * LED_MAX).all(|_| ask(&sampler)));
    }
}
