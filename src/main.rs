//! The program. What it does is in the library; here is what only a program can do: say what is wrong where memory ends.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator, which remembers that there was no memory.
struct Remembering;

static IS_EXHAUSTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread prints a panic, and holds the lock that Rust's own word of a lack of memory waits for.
    static PRINTS_A_PANIC: Cell<bool> = const { Cell::new(false) };
}

#[global_allocator]
static ALLOCATOR: Remembering = Remembering;

impl Remembering {
    fn remember(pointer: *mut u8) -> *mut u8 {
        if pointer.is_null() {
            IS_EXHAUSTED.store(true, Ordering::Relaxed);
            if PRINTS_A_PANIC.get() {
                end_with(NO_MEMORY);
            }
        }
        pointer
    }
}

// SAFETY: every call goes to the system's allocator, whose answer is given on as it is.
unsafe impl GlobalAlloc for Remembering {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are the system's conditions.
        Self::remember(unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as above.
        Self::remember(unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as above.
        Self::remember(unsafe { System.realloc(pointer, layout, size) })
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn write(file: i32, bytes: *const u8, length: usize) -> isize;
    fn _exit(status: i32) -> !;
}

const SIGABRT: i32 = 6;

const NO_MEMORY: &[u8] =
    b"error: there was no memory: give the program more (ulimit -v, the container's limit), or fewer --threads and a smaller \
--batch-size. What is finished is kept, and the same command goes on from there\n";

/// Without memory Rust ends by SIGABRT; this makes an error of it. Any other abort goes its way when this returns.
extern "C" fn end(_: i32) {
    if IS_EXHAUSTED.load(Ordering::Relaxed) {
        end_with(NO_MEMORY);
    }
}

/// Says it and ends, without memory and from anywhere; other threads end where they are, as after a kill.
fn end_with(message: &'static [u8]) -> ! {
    // SAFETY: both may be called in a handler of signals, and the bytes are there for as long as the program is.
    unsafe {
        write(2, message.as_ptr(), message.len());
        _exit(1);
    }
}

const NO_THREAD: &[u8] =
    b"error: no further thread can be started: give the program more memory (ulimit -v) or processes (ulimit -u), or fewer --threads. \
What is finished is kept, and the same command goes on from there\n";

/// A thread that the system refuses ends as a panic in Rust's own threads and in rayon's, and memory that a C library does not get as one in
/// its wrapper; neither is a fault of the program's.
fn tell_what_is_lacking() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if ["failed to spawn thread", "ThreadPoolBuildError"].iter().any(|sign| text.contains(sign)) {
            end_with(NO_THREAD);
        }
        if text.contains("zstd returned null pointer") {
            end_with(NO_MEMORY);
        }
        PRINTS_A_PANIC.set(true);
        usual(panic);
        PRINTS_A_PANIC.set(false);
    }));
}

fn main() -> ExitCode {
    tell_what_is_lacking();
    // SAFETY: the handler calls nothing but what a handler may call.
    unsafe { signal(SIGABRT, end) };
    clipcap::cli::main()
}
