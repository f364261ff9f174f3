//! Readers and a model on the same cores take turns.
//!
//! An image decoded while the model computes costs more than its own time: it takes a core from a team of threads that meet after every
//! operator, and all of them wait for the one that was put aside. Decoding while the model has nothing to do costs what it costs.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};

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

/// How many may decode at once, where more read: each picture's pixels take a hundred times its file's memory, and cores are few.
pub struct Turns {
    taken: Sender<()>,
    given_back: Receiver<()>,
}

/// Ends when it is dropped.
pub struct Turn<'a>(&'a Receiver<()>);

impl Turns {
    /// So many at once; one at least.
    pub fn new(many: usize) -> Self {
        let (taken, given_back) = bounded(many.max(1));
        Self { taken, given_back }
    }

    /// Waits for a turn.
    pub fn take(&self) -> Turn<'_> {
        // It fails only where nobody is at the other end, which is here.
        let _ = self.taken.send(());
        Turn(&self.given_back)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let _ = self.0.try_recv();
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
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
    fn no_more_than_have_a_turn_work_at_once() {
        let (turns, at_work, most) = (Turns::new(3), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for _ in 0..12 {
                scope.spawn(|| {
                    for _ in 0..20 {
                        let _turn = turns.take();
                        most.fetch_max(at_work.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        thread::sleep(Duration::from_micros(100));
                        at_work.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert_eq!((most.into_inner(), at_work.into_inner()), (3, 0));
    }

    #[test]
    fn nobody_waits_for_a_model_elsewhere() {
        let gate = Gate::new(false);
        gate.closed(|| assert_eq!(gate.wait(), Duration::ZERO));
    }
}
