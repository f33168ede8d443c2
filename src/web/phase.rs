//! How far a process is on its way to its end.

use tokio::sync::watch;

/// The stations of a process's life, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// All is served.
    Serving,
    /// All is served, but it says that it is not ready, and sees its clients off: a balancer takes a
    /// moment to notice, and sends new ones until then.
    Leaving,
    /// Nobody new comes in; what is under way ends.
    Closing,
}

/// Waits until the process is to end: no later than when nobody is there any more to tell it.
pub(super) async fn closing(mut phase: watch::Receiver<Phase>) {
    drop(phase.wait_for(|phase| *phase == Phase::Closing).await);
}
