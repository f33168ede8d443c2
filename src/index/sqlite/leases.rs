//! Leases of the embedded index: it has one process, whose memory holds them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::index::{
    FencedOff, Holding, IndexError, Lease, Renewal, Renewed, Taken, WANTED_SECONDS,
};

/// All leases.
#[derive(Default)]
pub(super) struct Leases {
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    rows: BTreeMap<String, Row>,
    generation: u64,
}

struct Row {
    owner: String,
    generation: u64,
    expires_at: Instant,
    wanted_at: Option<Instant>,
    note: Option<String>,
}

impl Row {
    fn is(&self, lease: &Lease) -> bool {
        self.generation == lease.generation
    }
}

impl Leases {
    pub(super) fn take(&self, name: &str, owner: &str, term: Duration) -> Taken {
        let mut table = self.table();
        let now = Instant::now();
        let before = table.rows.get(name);
        if before.is_some_and(|row| row.owner != owner && row.expires_at > now) {
            return Taken::Held;
        }
        let (note, wanted_at) =
            before.map(|row| (row.note.clone(), row.wanted_at)).unwrap_or_default();
        table.generation += 1;
        let generation = table.generation;
        let row = Row {
            owner: owner.to_owned(),
            generation,
            expires_at: now + term,
            wanted_at,
            note: note.clone(),
        };
        table.rows.insert(name.to_owned(), row);
        Taken::Granted { lease: Lease { name: name.to_owned(), generation }, note }
    }

    pub(super) fn renew(&self, renewals: &[Renewal], term: Duration) -> Vec<Renewed> {
        let mut table = self.table();
        let now = Instant::now();
        let mut renewed = Vec::new();
        for Renewal { lease, note } in renewals {
            let Some(row) = table.rows.get_mut(&lease.name).filter(|row| row.is(lease)) else {
                continue;
            };
            row.expires_at = now + term;
            if let Some(note) = note {
                row.note = Some(note.clone());
            }
            let lately = |at: Instant| now.duration_since(at).as_secs_f64() < WANTED_SECONDS;
            let is_wanted = row.wanted_at.is_some_and(lately);
            renewed.push(Renewed { name: lease.name.clone(), is_wanted });
        }
        renewed
    }

    pub(super) fn holdings(&self, names: &[String]) -> Vec<Holding> {
        let mut table = self.table();
        let now = Instant::now();
        let mut held = Vec::new();
        for name in names {
            let Some(row) = table.rows.get_mut(name).filter(|row| row.expires_at > now) else {
                continue;
            };
            row.wanted_at = Some(now);
            let lease = Lease { name: name.clone(), generation: row.generation };
            held.push(Holding { lease, note: row.note.clone() });
        }
        held
    }

    pub(super) fn holdings_like(&self, prefix: &str) -> Vec<Holding> {
        let now = Instant::now();
        let table = self.table();
        let held = table.rows.range(prefix.to_owned()..);
        held.take_while(|(name, _)| name.starts_with(prefix))
            .filter(|(_, row)| row.expires_at > now)
            .map(|(name, row)| Holding {
                lease: Lease { name: name.clone(), generation: row.generation },
                note: row.note.clone(),
            })
            .collect()
    }

    /// Nothing is done under a lease that is lost.
    pub(super) fn admit(&self, operation: &'static str, lease: &Lease) -> Result<(), IndexError> {
        if self.is_held(lease) {
            return Ok(());
        }
        Err(IndexError { operation, source: FencedOff.into() })
    }

    pub(super) fn release(&self, leases: &[Lease]) {
        let mut table = self.table();
        for lease in leases {
            if table.rows.get(&lease.name).is_some_and(|row| row.is(lease)) {
                table.rows.remove(&lease.name);
            }
        }
    }

    pub(super) fn is_held(&self, lease: &Lease) -> bool {
        self.table().rows.get(&lease.name).is_some_and(|row| row.is(lease))
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
