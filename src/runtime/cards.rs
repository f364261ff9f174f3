//! NVIDIA's cards, as the driver tells of them. Nothing is started on a card by asking.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::fmt;

use super::Precision;

/// A card and its driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Card {
    /// As in `--device cuda:N`.
    pub number: u32,
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Bytes of memory in all.
    pub memory: u64,
    /// The newest CUDA that the driver serves, major and minor.
    pub driver: (i32, i32),
}

/// Compute capabilities that onnxruntime-gpu's wheel has code for. It holds no code for later compilation, so a card needs one of its own
/// generation that is no newer than it is.
const BUILT_FOR: [(i32, i32); 6] = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (12, 0)];

/// The CUDA that the wheel is built with.
const CUDA: i32 = 13;

impl fmt::Display for Card {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { number, name, capability: (major, minor), memory, .. } = self;
        write!(f, "cuda:{number} {name} (compute capability {major}.{minor}, {:.1} GiB)", *memory as f64 / f64::from(1 << 30))
    }
}

impl Card {
    /// Why this program does not compute on the card, where it does not. `own_library`: the user chose another ONNX Runtime, whose code is
    /// unknown.
    pub fn refusal(&self, precision: Precision, own_library: bool) -> Option<String> {
        let (major, minor) = self.capability;
        let has_code = BUILT_FOR.iter().any(|&(other, least)| other == major && least <= minor);
        if !has_code && !own_library {
            return Some(format!(
                "{} has compute capability {major}.{minor}, and onnxruntime-gpu has code for 7.5, 8.0 to 8.9, 9.0 and 12.x: use another card, or \
                 name an ONNX Runtime that was built for this one in ORT_DYLIB_PATH",
                self.name
            ));
        }
        if self.driver.0 < CUDA && !own_library {
            let (major, minor) = self.driver;
            return Some(format!(
                "the NVIDIA driver serves CUDA {major}.{minor}, and CUDA {CUDA} is needed: install driver 580 or newer"
            ));
        }
        if precision == Precision::Bf16 && major < 8 {
            return Some(format!(
                "--precision bf16: {} has compute capability {major}.{minor}, and bf16 needs 8.0: use fp16 or fp32",
                self.name
            ));
        }
        None
    }
}

/// All cards.
///
/// # Errors
/// Why there is none, in words.
pub fn cards() -> Result<Vec<Card>, String> {
    // SAFETY: the driver's library, by the name that it has everywhere; opening it starts nothing.
    let library = unsafe { libloading::Library::new("libcuda.so.1") }
        .map_err(|_| "there is no NVIDIA driver (libcuda.so.1 was not found)".to_string())?;
    let driver = Driver { library };
    let version = driver.number("cuDriverGetVersion")?;
    driver.start()?;
    let count = driver.number("cuDeviceGetCount")?;
    let cards = (0..count).map(|number| driver.card(number, (version / 1000, version % 1000 / 10)));
    let cards = cards.collect::<Result<Vec<_>, _>>()?;
    if cards.is_empty() { Err("the NVIDIA driver sees no card (is CUDA_VISIBLE_DEVICES empty?)".into()) } else { Ok(cards) }
}

struct Driver {
    library: libloading::Library,
}

/// Attributes of a device, as cuda.h numbers them.
const CAPABILITY: [c_int; 2] = [75, 76];

impl Driver {
    fn function<T>(&self, name: &str) -> Result<libloading::Symbol<'_, T>, String> {
        // SAFETY: the callers name cuda.h's functions with their types.
        unsafe { self.library.get(name.as_bytes()) }.map_err(|_| format!("the NVIDIA driver has no {name}"))
    }

    fn start(&self) -> Result<(), String> {
        let init = self.function::<unsafe extern "C" fn(c_uint) -> c_int>("cuInit")?;
        // SAFETY: 0 is the one value that it takes.
        match unsafe { init(0) } {
            0 => Ok(()),
            100 => Err("the NVIDIA driver sees no card (is CUDA_VISIBLE_DEVICES empty?)".into()),
            other => Err(format!("the NVIDIA driver does not start (cuInit says {other}: does nvidia-smi work?)")),
        }
    }

    /// What a function that fills in one number says.
    fn number(&self, name: &str) -> Result<c_int, String> {
        let get = self.function::<unsafe extern "C" fn(*mut c_int) -> c_int>(name)?;
        let mut number = 0;
        // SAFETY: it writes one int.
        check(name, unsafe { get(&raw mut number) })?;
        Ok(number)
    }

    fn card(&self, number: c_int, driver: (i32, i32)) -> Result<Card, String> {
        let get = self.function::<unsafe extern "C" fn(*mut c_int, c_int) -> c_int>("cuDeviceGet")?;
        let name_of = self.function::<unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int>("cuDeviceGetName")?;
        let memory_of = self.function::<unsafe extern "C" fn(*mut usize, c_int) -> c_int>("cuDeviceTotalMem_v2")?;
        let attribute = self.function::<unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int>("cuDeviceGetAttribute")?;
        let (mut device, mut memory, mut name) = (0, 0usize, [0 as c_char; 256]);
        let mut capability = [0; 2];
        // SAFETY: cuda.h's functions with its types; the name's buffer is as long as is said, and ends in NUL.
        let name = unsafe {
            check("cuDeviceGet", get(&raw mut device, number))?;
            check("cuDeviceGetName", name_of(name.as_mut_ptr(), name.len() as c_int - 1, device))?;
            check("cuDeviceTotalMem", memory_of(&raw mut memory, device))?;
            for (value, which) in capability.iter_mut().zip(CAPABILITY) {
                check("cuDeviceGetAttribute", attribute(value, which, device))?;
            }
            CStr::from_ptr(name.as_ptr()).to_string_lossy().into_owned()
        };
        let number = u32::try_from(number).unwrap_or(0);
        Ok(Card { number, name, capability: (capability[0], capability[1]), memory: memory as u64, driver })
    }
}

fn check(function: &str, status: c_int) -> Result<(), String> {
    if status == 0 { Ok(()) } else { Err(format!("the NVIDIA driver's {function} says {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_that_the_wheel_has_no_code_for_are_refused_by_name() {
        let card = |name: &str, capability| Card { number: 0, name: name.into(), capability, memory: 1 << 34, driver: (13, 0) };
        for (name, capability, is_taken) in [
            ("Tesla V100", (7, 0), false),
            ("Tesla T4", (7, 5), true),
            ("A100", (8, 0), true),
            ("Orin", (8, 7), true),
            ("L4", (8, 9), true),
            ("H100", (9, 0), true),
            ("B200", (10, 0), false),
            ("GB300", (10, 3), false),
            ("RTX 5090", (12, 0), true),
            ("GB10", (12, 1), true),
        ] {
            let refusal = card(name, capability).refusal(Precision::Fp16, false);
            assert_eq!(refusal.is_none(), is_taken, "{name}: {refusal:?}");
            assert!(refusal.is_none_or(|refusal| refusal.contains(name)));
            assert_eq!(card(name, capability).refusal(Precision::Fp16, true), None, "{name}");
        }
        assert!(card("Tesla T4", (7, 5)).refusal(Precision::Bf16, false).is_some_and(|refusal| refusal.contains("bf16")));
        let old = Card { driver: (12, 4), ..card("A100", (8, 0)) };
        assert!(old.refusal(Precision::Fp32, false).is_some_and(|refusal| refusal.contains("12.4")));
        assert_eq!(card("A100", (8, 0)).to_string(), "cuda:0 A100 (compute capability 8.0, 16.0 GiB)");
    }
}
