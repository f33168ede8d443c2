//! Duties: what a site does once, however many processes it has. Who does it holds a lease; it passes
//! on when that one ends, dies, or is paused for so long that it seems dead.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use prometheus::{IntGauge, IntGaugeVec};
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::engine::leases::{Leases, Sureness, Tenure};
use crate::index::{Index, IndexError, Lease};
use crate::telemetry::metrics::Metrics;

/// What a site does once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Duty {
    /// Checks the bytes of what is stored.
    Scrub,
    /// Brings volume and index together.
    Adopt,
    /// Walks over shared folders.
    Folders,
    /// Keeps room ahead of the need.
    Tidy,
    /// Evicts, for as long as one eviction takes.
    Evict,
    /// Learns a list.
    Learn,
    /// Fetches before anybody asks.
    Prefetch,
    /// Fetches lists anew that were contradicted.
    Doubt,
}

impl Duty {
    const ALL: [Self; 8] = [
        Self::Scrub,
        Self::Adopt,
        Self::Folders,
        Self::Tidy,
        Self::Evict,
        Self::Learn,
        Self::Prefetch,
        Self::Doubt,
    ];

    /// The word for metric labels, people and names of leases.
    fn label(self) -> &'static str {
        match self {
            Self::Scrub => "scrub",
            Self::Adopt => "adopt",
            Self::Folders => "folders",
            Self::Tidy => "tidy",
            Self::Evict => "evict",
            Self::Learn => "learn",
            Self::Prefetch => "prefetch",
            Self::Doubt => "doubt",
        }
    }

    /// Whether each volume has it done for itself, where processes have volumes of their own.
    fn is_of_a_volume(self) -> bool {
        match self {
            Self::Scrub | Self::Adopt | Self::Folders | Self::Tidy | Self::Evict => true,
            Self::Learn | Self::Prefetch | Self::Doubt => false,
        }
    }
}

/// The duties of this process.
pub(in crate::engine) struct Duties {
    leases: Arc<Leases>,
    /// Tells one volume of a site from another; empty where there is one.
    volume: String,
    held: IntGaugeVec,
}

impl Duties {
    pub(in crate::engine) fn new(leases: &Arc<Leases>, metrics: &Metrics) -> Arc<Self> {
        let held = metrics.gauges(
            "aptmesh_engine_duties",
            "What a site does once and this process does now: 1 if it does, more for more lists.",
            &["duty"],
        );
        for duty in Duty::ALL {
            held.with_label_values(&[duty.label()]).set(0);
        }
        Arc::new(Self { leases: Arc::clone(leases), volume: leases.volume().to_owned(), held })
    }

    /// Those of a command that runs beside a cache, or without one; renewed for as long as it runs.
    pub(in crate::engine) fn of_a_command(index: &Arc<dyn Index>, metrics: &Metrics) -> Arc<Self> {
        let leases = Leases::new(index, metrics);
        if Handle::try_current().is_ok() {
            TaskTracker::new().spawn(Arc::clone(&leases).run());
        }
        Self::new(&leases, metrics)
    }

    /// Those that this process has now.
    pub(in crate::engine) fn labels(&self) -> Vec<&'static str> {
        let labels = Duty::ALL.into_iter().map(Duty::label);
        labels.filter(|label| self.held.with_label_values(&[label]).get() > 0).collect()
    }

    /// The name of the lease for what the volume needs.
    pub(in crate::engine) fn name_on_volume(&self, label: &str, what: &str) -> String {
        format!("{label}@{}:{what}", self.volume)
    }

    pub(in crate::engine) fn leases(&self) -> &Arc<Leases> {
        &self.leases
    }

    fn name(&self, duty: Duty, what: &str) -> String {
        if duty.is_of_a_volume() {
            return self.name_on_volume(duty.label(), what);
        }
        format!("{}:{what}", duty.label())
    }

    /// Takes on a duty, of which there is one for each `what`; `None` while a fellow has it.
    ///
    /// # Errors
    /// When the index can not be asked.
    pub(in crate::engine) async fn take(
        &self,
        duty: Duty,
        what: &str,
    ) -> Result<Option<OnDuty>, IndexError> {
        let taken = self.leases.take(&self.name(duty, what), None).await?;
        Ok(taken.map(|(tenure, _)| self.on_duty(duty, tenure)))
    }

    /// Has `work`, which never ends by itself, done for as long as the site lives, while this
    /// process is the one to do it. It is dropped in its midst when a fellow took over, and has to
    /// wait for the [`Sureness`] before each step.
    pub(in crate::engine) async fn carry<W>(
        &self,
        duty: Duty,
        what: &str,
        mut work: impl FnMut(Sureness) -> W,
    ) where
        W: Future<Output = Infallible>,
    {
        let name = self.name(duty, what);
        loop {
            let on_duty = self.on_duty(duty, self.leases.hold(&name).await);
            tracing::debug!(duty = duty.label(), "on duty");
            tokio::select! {
                biased;
                () = on_duty.tenure.lost() => {}
                never = work(on_duty.tenure.sureness()) => match never {},
            }
        }
    }

    fn on_duty(&self, duty: Duty, tenure: Tenure) -> OnDuty {
        let held = self.held.with_label_values(&[duty.label()]);
        held.inc();
        OnDuty { tenure, held }
    }
}

/// A duty of this process, until this is dropped.
pub(in crate::engine) struct OnDuty {
    tenure: Tenure,
    held: IntGauge,
}

impl OnDuty {
    /// To write under.
    pub(in crate::engine) fn lease(&self) -> &Lease {
        self.tenure.lease()
    }

    pub(in crate::engine) fn sureness(&self) -> Sureness {
        self.tenure.sureness()
    }
}

impl Drop for OnDuty {
    fn drop(&mut self) {
        self.held.dec();
    }
}
