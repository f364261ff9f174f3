//! Readers and a model on the same cores take turns.
//!
//! An image decoded while the model computes costs more than its own time: it takes a core from a team of threads that meet after every
//! operator, and all of them wait for the one that was put aside. Decoding while the model has nothing to do costs what it costs.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

pub struct Gate {
    /// False where the model computes elsewhere: nobody waits.
    takes_turns: bool,
    is_closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    pub fn new(takes_turns: bool) -> Self {
        Self { takes_turns, is_closed: Mutex::new(false), opened: Condvar::new() }
    }

    /// Runs `work` with the gate closed.
    pub fn closed<T>(&self, work: impl FnOnce() -> T) -> T {
        let _opens = Closed::new(self);
        work()
    }

    /// Waits until the gate is open; returns how long that took.
    pub fn wait(&self) -> Duration {
        if !self.takes_turns {
            return Duration::ZERO;
        }
        let start = Instant::now();
        let opened = self.opened.wait_while(self.state(), |is_closed| *is_closed);
        drop(opened.unwrap_or_else(|poisoned| poisoned.into_inner()));
        start.elapsed()
    }

    fn state(&self) -> MutexGuard<'_, bool> {
        self.is_closed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Opens the gate again, also where `work` panics.
struct Closed<'a>(&'a Gate);

impl<'a> Closed<'a> {
    fn new(gate: &'a Gate) -> Self {
        *gate.state() = true;
        Self(gate)
    }
}

impl Drop for Closed<'_> {
    fn drop(&mut self) {
        *self.0.state() = false;
        self.0.opened.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn readers_wait_for_the_model_and_go_on_when_it_fails() {
        let (gate, is_computing) = (Gate::new(true), AtomicBool::new(false));
        thread::scope(|scope| {
            let compute = || {
                gate.closed(|| {
                    is_computing.store(true, Ordering::SeqCst);
                    thread::sleep(Duration::from_millis(20));
                    is_computing.store(false, Ordering::SeqCst);
                    panic!("a fault");
                })
            };
            let model = scope.spawn(compute);
            while !is_computing.load(Ordering::SeqCst) && !model.is_finished() {
                thread::yield_now();
            }
            gate.wait();
            assert!(!is_computing.load(Ordering::SeqCst));
            assert!(model.join().is_err());
        });
        assert!(gate.wait() < Duration::from_secs(1));
    }

    #[test]
    fn nobody_waits_for_a_model_elsewhere() {
        let gate = Gate::new(false);
        gate.closed(|| assert_eq!(gate.wait(), Duration::ZERO));
    }
}
