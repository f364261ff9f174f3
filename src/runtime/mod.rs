//! ONNX Runtime: where its library is, which device computes, and sessions with checked names.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use ort::environment::Environment;
use ort::ep::{ArbitrarilyConfigurableExecutionProvider, ExecutionProvider};
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};

mod complete;
mod device;
mod error;
mod library;
mod placement;
mod resident;
pub mod selftest;
mod session;

pub use device::{Device, Precision};
pub use error::RuntimeError;
pub use placement::Placement;
pub use resident::{Resident, ResidentFeed};
pub use session::{Feed, InPlace, Outputs, Session};

/// A loaded ONNX Runtime, set on one device, precision and number of threads.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
    library: PathBuf,
    version: String,
    device: Device,
    precision: Precision,
    threads: usize,
    /// Of sessions made on a device other than the CPU and not yet asked about.
    placements: Arc<Mutex<Vec<Placement>>>,
}

impl Runtime {
    /// Finds and loads the library and settles the device: `Device::Auto` becomes CUDA where it is usable and the CPU otherwise; any
    /// other device is used or refused.
    pub fn start(device: Device, precision: Precision, threads: Option<usize>) -> Result<Self, RuntimeError> {
        let library = library::find(device)?;
        let (environment, version) = library::load(&library)?;
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())).max(1);
        let mut runtime = Self { environment, library, version, device, precision, threads, placements: Arc::default() };
        if device == Device::Auto {
            runtime.device = Device::Cuda(0);
            if runtime.session_builder("device check").is_err() {
                runtime.device = Device::Cpu;
            }
        }
        runtime.check_precision()?;
        if runtime.device != Device::Cpu {
            runtime.session_builder("device check")?;
        }
        Ok(runtime)
    }

    fn check_precision(&self) -> Result<(), RuntimeError> {
        let fits = match self.device {
            Device::Cpu | Device::Auto => matches!(self.precision, Precision::Fp32 | Precision::Int8),
            Device::OpenVino => matches!(self.precision, Precision::Fp32 | Precision::Bf16 | Precision::Int8),
            Device::Cuda(_) => matches!(self.precision, Precision::Fp32 | Precision::Fp16 | Precision::Bf16),
        };
        if fits {
            return Ok(());
        }
        let can = match self.device {
            Device::Cpu | Device::Auto => "the CPU provider computes in fp32 and int8 (bf16 on a CPU: --device openvino)",
            Device::OpenVino => "OpenVINO computes in fp32, bf16 and int8 here",
            Device::Cuda(_) => "CUDA computes in fp32, fp16 and bf16 here",
        };
        Err(RuntimeError::DeviceUnavailable { device: self.device, message: format!("--precision {}: {can}", self.precision) })
    }

    /// The device that is used; never `Device::Auto`.
    pub fn device(&self) -> Device {
        self.device
    }

    pub fn precision(&self) -> Precision {
        self.precision
    }

    pub fn threads(&self) -> usize {
        self.threads
    }

    /// The library that was loaded.
    pub fn library(&self) -> &Path {
        &self.library
    }

    /// The library's version, such as `1.31.1`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What the library says of its version and build.
    pub fn build_info(&self) -> &'static str {
        ort::info()
    }

    /// The same runtime on its CPU provider, for a model that this device does not run.
    pub fn on_cpu(&self) -> Self {
        let precision = if self.precision == Precision::Int8 { Precision::Int8 } else { Precision::Fp32 };
        Self { device: Device::Cpu, precision, ..self.clone() }
    }

    /// Execution providers the library was built with.
    pub fn providers(&self) -> Vec<&'static str> {
        let mut names = vec!["CPUExecutionProvider"];
        if ort::ep::OpenVINO::is_available().unwrap_or(false) {
            names.push(ort::ep::OpenVINO::NAME);
        }
        if ort::ep::CUDA::is_available().unwrap_or(false) {
            names.push(ort::ep::CUDA::NAME);
        }
        names
    }

    /// Where the nodes of sessions made since the last call compute; nothing on the CPU device, where there is no other place.
    pub fn take_placements(&self) -> Vec<Placement> {
        std::mem::take(&mut *self.placements.lock().unwrap_or_else(|e| e.into_inner()))
    }

    /// The provider of a device that has its own.
    fn provider(&self) -> Option<&'static str> {
        match self.device {
            Device::Cpu | Device::Auto => None,
            Device::OpenVino => Some(ort::ep::OpenVINO::NAME),
            Device::Cuda(_) => Some(ort::ep::CUDA::NAME),
        }
    }

    /// Options every session shares, the device's provider registered or refused.
    fn session_builder(&self, model: &str) -> Result<SessionBuilder, RuntimeError> {
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
            Device::Cpu | Device::Auto => {}
            Device::OpenVino => {
                let hint = match self.precision {
                    Precision::Bf16 => "bf16",
                    // What is not in 8 bits: in bf16 where the processor has it.
                    Precision::Int8 if std::is_x86_feature_detected!("avx512bf16") => "bf16",
                    _ => "f32",
                };
                let options = [
                    ("INFERENCE_PRECISION_HINT", hint.to_string()),
                    ("INFERENCE_NUM_THREADS", self.threads.to_string()),
                    // All threads on one batch.
                    ("PERFORMANCE_HINT", "LATENCY".to_string()),
                    ("NUM_STREAMS", "1".to_string()),
                ];
                let options: Vec<String> = options.iter().map(|(name, value)| format!(r#""{name}":"{value}""#)).collect();
                let config = format!(r#"{{"CPU":{{{}}}}}"#, options.join(","));
                ort::ep::OpenVINO::default()
                    .with_device_type("CPU")
                    .with_arbitrary_config("load_config", config)
                    .register(&mut builder)
                    .map_err(refused)?;
            }
            Device::Cuda(number) => {
                let number = i32::try_from(number)
                    .map_err(|_| RuntimeError::DeviceUnavailable { device: self.device, message: "no such device".into() })?;
                ort::ep::CUDA::default().with_device_id(number).with_tf32(false).register(&mut builder).map_err(refused)?;
            }
        }
        Ok(builder)
    }
}
