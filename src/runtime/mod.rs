//! ONNX Runtime, and OpenVINO beside it: where the libraries are, which device computes, and sessions with checked names.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ort::environment::Environment;
use ort::ep::ExecutionProvider;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

use self::openvino::OpenVino;
use self::session::Kind;
use crate::onnx::DType;

mod cards;
mod complete;
mod device;
mod error;
mod library;
mod memory;
mod nvidia;
mod openvino;
mod operators;
mod placement;
pub(crate) mod selftest;
mod session;
mod tensor;

pub(crate) use cards::{Card, cards};
pub use device::{Device, Precision};
pub use error::RuntimeError;
pub(crate) use memory::{DeviceMemory, HostMemory};
pub(crate) use nvidia::NvidiaLibrary;
pub(crate) use operators::{REVISION as OPERATORS_REVISION, has_int8_products};
pub(crate) use placement::Placement;
pub(crate) use session::{Feed, Session};
pub(crate) use tensor::InPlace;

/// A loaded ONNX Runtime, set on one device, precision and number of threads.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
    version: String,
    /// Loaded where it computes.
    openvino: Option<OpenVino>,
    device: Device,
    precision: Precision,
    threads: usize,
    /// The card that is computed on, and those beside it.
    cards: Vec<Card>,
    /// CUDA's libraries, where they were asked for.
    nvidia: Vec<NvidiaLibrary>,
    /// Why `Device::Auto` became the CPU.
    not_cuda: Option<String>,
    /// Of sessions made on a device other than the CPU and not yet asked about.
    placements: Arc<Mutex<Vec<Placement>>>,
}

impl Runtime {
    /// Finds and loads the library and settles the device: `Device::Auto` becomes CUDA where it is usable and the CPU otherwise; any
    /// other device is used or refused.
    pub fn start(device: Device, precision: Precision, threads: Option<usize>) -> Result<Self, RuntimeError> {
        let threads = self::threads(threads);
        let on = |device, library: PathBuf, ready: Ready, not_cuda| -> Result<Self, RuntimeError> {
            let openvino = match device {
                Device::OpenVino => Some(OpenVino::load(&library::find_openvino()?)?),
                _ => None,
            };
            let (environment, version) = library::load(&library)?;
            operators::announce(&environment).map_err(|source| RuntimeError::Ort { model: "operators".into(), source })?;
            let Ready { cards, nvidia } = ready;
            Ok(Self {
                environment,
                library,
                version,
                openvino,
                device,
                precision,
                threads,
                cards,
                nvidia,
                not_cuda,
                placements: Arc::default(),
            })
        };
        if device != Device::Auto {
            let numbers: Vec<u32> = match device {
                Device::Cuda(number) => vec![number],
                Device::Cards(set) => set.numbers().collect(),
                _ => vec![],
            };
            let ready = if numbers.is_empty() { Ready::default() } else { ready(device, &numbers, precision)? };
            let first = numbers.first().map_or(device, |&number| Device::Cuda(number));
            let runtime = on(first, library::find(device)?, ready, None)?;
            runtime.check_precision()?;
            for runtime in runtime.on_each_card().iter().filter(|runtime| runtime.device != Device::Cpu) {
                runtime.session_builder("device check", Kind::PLAIN)?;
            }
            return Ok(runtime);
        }
        let cuda = Device::Cuda(0);
        let why_not = match precision {
            Precision::Int8 => "int8 is computed on the CPU".to_string(),
            _ => match ready(cuda, &[0], precision).and_then(|ready| on(cuda, library::find(cuda)?, ready, None)) {
                Ok(runtime) => match runtime.session_builder("device check", Kind::PLAIN) {
                    Ok(_) => return Ok(runtime),
                    // One process has one library; it has a CPU provider too.
                    Err(error) => {
                        let runtime = Self { device: Device::Cpu, cards: vec![], not_cuda: Some(error.to_string()), ..runtime };
                        return runtime.check_precision().map(|()| runtime);
                    }
                },
                Err(RuntimeError::DeviceUnavailable { message, .. }) => message,
                Err(error) => error.to_string(),
            },
        };
        let runtime = on(Device::Cpu, library::find(device)?, Ready::default(), Some(why_not))?;
        runtime.check_precision()?;
        Ok(runtime)
    }

    /// This runtime once for each of its cards.
    pub fn on_each_card(&self) -> Vec<Self> {
        if self.cards.len() < 2 {
            return vec![self.clone()];
        }
        self.cards
            .iter()
            .map(|card| Self { device: Device::Cuda(card.number), cards: vec![card.clone()], ..self.clone() })
            .collect()
    }

    /// The same device in another precision.
    pub fn in_precision(&self, precision: Precision) -> Result<Self, RuntimeError> {
        let runtime = Self { precision, ..self.clone() };
        runtime.check_precision()?;
        let refusal = self.cards.iter().find_map(|card| card.refusal(precision, library::is_chosen()));
        match refusal {
            Some(message) => Err(RuntimeError::DeviceUnavailable { device: self.device, message }),
            None => Ok(runtime),
        }
    }

    /// The same with another number of threads, for sessions to come.
    pub fn with_threads(&self, threads: usize) -> Self {
        Self { threads, ..self.clone() }
    }

    /// Precisions that the device has, whatever the card.
    pub fn precisions(&self) -> &'static [Precision] {
        match self.device {
            Device::Cpu | Device::Auto => &[Precision::Fp32, Precision::Int8],
            Device::OpenVino => &[Precision::Fp32, Precision::Bf16, Precision::Int8],
            Device::Cuda(_) | Device::Cards(_) => &[Precision::Fp32, Precision::Fp16, Precision::Bf16],
        }
    }

    /// The element type that graphs for this device and precision have inside.
    pub fn dtype(&self) -> DType {
        match (self.device, self.precision) {
            (Device::Cuda(_), Precision::Fp16) => DType::F16,
            (Device::Cuda(_), Precision::Bf16) => DType::BF16,
            // OpenVINO's bf16 is a hint; the graph stays float32.
            _ => DType::F32,
        }
    }

    fn check_precision(&self) -> Result<(), RuntimeError> {
        let fits = self.precisions().contains(&self.precision);
        if fits {
            return Ok(());
        }
        let can = match self.device {
            Device::Cpu | Device::Auto => "the CPU provider computes in fp32 and int8 (bf16 on a CPU: --device openvino)",
            Device::OpenVino => "OpenVINO computes in fp32, bf16 and int8 here",
            Device::Cuda(_) | Device::Cards(_) => "CUDA computes in fp32, fp16 and bf16 here",
        };
        Err(RuntimeError::DeviceUnavailable { device: self.device, message: format!("--precision {}: {can}", self.precision) })
    }

    /// The device that is used; never `Device::Auto`.
    pub fn device(&self) -> Device {
        self.device
    }

    /// The precision that models compute in.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Threads that models compute with.
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The cards that are computed on, in order.
    pub fn cards(&self) -> &[Card] {
        &self.cards
    }

    /// CUDA's libraries and where each was found, if a card was to be used.
    pub fn nvidia_libraries(&self) -> &[NvidiaLibrary] {
        &self.nvidia
    }

    /// Why `Device::Auto` did not become CUDA.
    pub fn why_not_cuda(&self) -> Option<&str> {
        self.not_cuda.as_deref()
    }

    /// The library that was loaded.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// ONNX Runtime's version, such as `1.31.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// OpenVINO's library and version, where that computes.
    pub fn openvino(&self) -> Option<(&Path, &str)> {
        self.openvino.as_ref().map(|openvino| (openvino.library.as_path(), openvino.version.as_str()))
    }

    /// What the library says of its version and build.
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    /// The same runtime on its CPU provider, for a model that this device does not run.
    pub fn on_cpu(&self) -> Self {
        let precision = if self.precision == Precision::Int8 { Precision::Int8 } else { Precision::Fp32 };
        Self { device: Device::Cpu, precision, cards: vec![], openvino: None, ..self.clone() }
    }

    /// Execution providers the library was built with.
    pub fn providers(&self) -> Vec<&'static str> {
        let mut names = vec!["CPUExecutionProvider"];
        if ort::ep::CUDA::is_available().unwrap_or(false) {
            names.push(ort::ep::CUDA::NAME);
        }
        names
    }

    /// Where the nodes of sessions made since the last call compute; nothing on the CPU device, where there is no other place.
    pub fn take_placements(&self) -> Vec<Placement> {
        std::mem::take(&mut *self.placements.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// Keeps where a model computes, for whoever asks.
    fn note(&self, placement: Placement) {
        self.placements.lock().unwrap_or_else(|e| e.into_inner()).push(placement);
    }

    /// The execution provider of a device that has its own.
    fn provider(&self) -> Option<&'static str> {
        match self.device {
            Device::Cpu | Device::Auto | Device::OpenVino => None,
            Device::Cuda(_) | Device::Cards(_) => Some(ort::ep::CUDA::NAME),
        }
    }

    /// Options every session shares, the device's provider registered or refused.
    fn session_builder(&self, model: &str, Kind { recorded, .. }: Kind) -> Result<SessionBuilder, RuntimeError> {
        let ort = |source: ort::Error| RuntimeError::Ort { model: model.into(), source };
        let builder = ort::session::Session::builder(&self.environment).map_err(ort)?;
        let builder = builder.with_optimization_level(GraphOptimizationLevel::All).map_err(|e| ort(e.into()))?;
        let builder = builder.with_intra_threads(self.threads).map_err(|e| ort(e.into()))?;
        let mut builder = builder.with_deterministic_compute(true).map_err(|e| ort(e.into()))?;
        // Threads that wait for the next run by going round in circles take the cores from what comes between two runs.
        builder = builder.with_config_entry("session.force_spinning_stop", "1").map_err(|e| ort(e.into()))?;
        if !(std::is_x86_feature_detected!("avx512vnni") || std::is_x86_feature_detected!("avxvnni")) {
            // 8-bit products would overflow in silence; this spelling is exact, and half as fast.
            builder = builder.with_precise_qmm().map_err(|e| ort(e.into()))?;
        }
        let refused =
            |e: ort::Error| RuntimeError::DeviceUnavailable { device: self.device, message: error::shortened(&e.to_string()) };
        match self.device {
            Device::Cpu | Device::Auto | Device::OpenVino => {
                builder = builder.with_operators(operators::domain().map_err(ort)?).map_err(|e| ort(e.into()))?;
            }
            Device::Cuda(_) | Device::Cards(_) => {
                let number = self.cards.first().map_or(0, |card| card.number);
                let number = i32::try_from(number)
                    .map_err(|_| RuntimeError::DeviceUnavailable { device: self.device, message: "no such device".into() })?;
                // Its softmax with a sum before it wants cuDNN; the two apart do not.
                builder = builder
                    .with_config_entry("optimization.disable_specified_optimizers", "BiasSoftmaxFusion")
                    .map_err(|e| ort(e.into()))?;
                ort::ep::CUDA::default()
                    .with_device_id(number)
                    .with_tf32(false)
                    .with_cuda_graph(recorded)
                    // Each session has memory of its own: as much as it asks for, not the next power of two.
                    .with_arena_extend_strategy(ort::ep::ArenaExtendStrategy::SameAsRequested)
                    // Trying every convolution on every new shape takes longer than it saves.
                    .with_conv_algorithm_search(ort::ep::cuda::ConvAlgorithmSearch::Heuristic)
                    .register(&mut builder)
                    .map_err(refused)?;
            }
        }
        Ok(builder)
    }
}

/// Threads that were asked for, or as many as there are cores.
pub fn threads(asked: Option<usize>) -> usize {
    asked.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())).max(1)
}

/// The library that a device would compute with; None where there is none.
pub fn library_of(device: Device) -> Option<PathBuf> {
    match device {
        Device::OpenVino => library::find_openvino().ok(),
        _ => library::find(device).ok(),
    }
}

/// What is to be there before CUDA's provider is loaded.
#[derive(Default)]
struct Ready {
    cards: Vec<Card>,
    nvidia: Vec<NvidiaLibrary>,
}

/// Asks the driver for the cards of these numbers and opens CUDA's libraries; `device` is what a refusal names.
fn ready(device: Device, numbers: &[u32], precision: Precision) -> Result<Ready, RuntimeError> {
    let refused = |message: String| RuntimeError::DeviceUnavailable { device, message };
    let all = cards().map_err(refused)?;
    let mut chosen = vec![];
    for number in numbers {
        let Some(card) = all.iter().find(|card| card.number == *number) else {
            let there: Vec<String> = all.iter().map(ToString::to_string).collect();
            return Err(refused(format!("there is no card {number}; found: {}", there.join(", "))));
        };
        if let Some(refusal) = card.refusal(precision, library::is_chosen()) {
            return Err(refused(refusal));
        }
        chosen.push(card.clone());
    }
    let nvidia = match nvidia::open_all(&library::find(device)?) {
        Ok(nvidia) => nvidia,
        // Another build may need others.
        Err(_) if library::is_chosen() => vec![],
        Err(problem) => return Err(refused(problem)),
    };
    Ok(Ready { cards: chosen, nvidia })
}
