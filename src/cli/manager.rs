//! What a service manager hears of the process (`sd_notify(3)`): systemd, where the unit is of
//! `Type=notify`. Without one, nothing is said to anybody.

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::TaskTracker;

/// All runs; `status` says in a line what.
pub(super) fn ready(status: &str) {
    notify(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// The settings are being read again, until it is ready again.
pub(super) fn reloading() {
    let mut states = vec![NotifyState::Reloading, NotifyState::Status("reading the settings")];
    states.extend(NotifyState::monotonic_usec_now());
    notify(&states);
}

/// The process was told to stop; `status` says in a line what it waits for.
pub(super) fn stopping(status: &str) {
    notify(&[NotifyState::Stopping, NotifyState::Status(status)]);
}

/// Tells again and again that the runtime runs, on `background`, where the manager kills who does not.
pub(super) fn keep_alive(background: &TaskTracker) {
    let Some(patience) = sd_notify::watchdog_enabled() else { return };
    // Twice in the time that it waits, as `sd_watchdog_enabled(3)` has it.
    let period = patience / 2;
    if period.is_zero() {
        return;
    }
    background.spawn(async move {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            notify(&[NotifyState::Watchdog]);
        }
    });
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::warn!(%error, "the service manager does not hear us");
    }
}
