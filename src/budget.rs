//! So much of something at once: whoever wants more waits until others are done with theirs.

use std::sync::{Condvar, Mutex, MutexGuard};

pub struct Budget {
    all: u64,
    free: Mutex<u64>,
    freed: Condvar,
}

/// What somebody has of a budget, until it is dropped.
pub struct Share<'a> {
    budget: &'a Budget,
    amount: u64,
}

impl Budget {
    pub const fn new(all: u64) -> Self {
        Self { all, free: Mutex::new(all), freed: Condvar::new() }
    }

    /// Waits until there is so much. Whoever wants more than all of it gets all.
    pub fn take(&self, amount: u64) -> Share<'_> {
        let amount = amount.min(self.all);
        let free = self.freed.wait_while(self.free(), |free| *free < amount);
        *free.unwrap_or_else(|poisoned| poisoned.into_inner()) -= amount;
        Share { budget: self, amount }
    }

    fn free(&self) -> MutexGuard<'_, u64> {
        self.free.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *self.budget.free() += self.amount;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn never_more_is_out_than_there_is_and_everybody_has_a_turn() {
        let (budget, out, turns) = (Budget::new(10), AtomicU64::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            for amount in [1, 3, 10, 1000, 7, 2, 0, 10] {
                let (budget, out, turns) = (&budget, &out, &turns);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let share = budget.take(amount);
                        assert!(out.fetch_add(share.amount, Ordering::SeqCst) + share.amount <= 10);
                        thread::yield_now();
                        out.fetch_sub(share.amount, Ordering::SeqCst);
                        turns.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((turns.into_inner(), *budget.free()), (400, 10));
    }
}
