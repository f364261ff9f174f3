//! Runs whose large tensors stay on the device from one run to the next.

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::value::{DynValue, Tensor};

use super::session::Feed;
use super::{Device, Runtime, RuntimeError, Session};

/// A tensor on the device.
pub struct Resident(DynValue);

/// An input of a run: from the host, or already on the device.
pub enum ResidentFeed<'a> {
    Host(Feed<'a>),
    Device(&'a Resident),
}

impl Session {
    /// Runs with outputs `host` copied to the host (float32) and outputs `device` left on the device, each in the order named.
    pub fn run_resident(
        &mut self,
        runtime: &Runtime,
        feeds: &[(&str, ResidentFeed<'_>)],
        host: &[&str],
        device: &[String],
    ) -> Result<(Vec<Vec<f32>>, Vec<Resident>), RuntimeError> {
        let name = self.name.clone();
        let ort = |source: ort::Error| RuntimeError::Ort { model: name.clone(), source };
        let mut binding = self.inner.create_binding().map_err(ort)?;
        for (input, feed) in feeds {
            match feed {
                // A copy: of borrowed numbers that stay on the host, ort makes one with a session of its own, and waits for itself.
                ResidentFeed::Host(feed) => binding.bind_input(*input, &owned(feed).map_err(ort)?).map_err(ort)?,
                ResidentFeed::Device(resident) => binding.bind_input(*input, &resident.0).map_err(ort)?,
            }
        }
        let memory = |device: AllocationDevice<'static>, number: i32| {
            MemoryInfo::new(device, number, AllocatorType::Device, MemoryType::Default)
        };
        let (home, there) = match runtime.device() {
            Device::Cuda(number) => {
                let number = i32::try_from(number).unwrap_or(0);
                // Pinned: the device writes there by itself.
                let pinned = MemoryInfo::new(AllocationDevice::CUDA_PINNED, number, AllocatorType::Device, MemoryType::CPUOutput);
                (pinned.map_err(ort)?, memory(AllocationDevice::CUDA, number).map_err(ort)?)
            }
            _ => (memory(AllocationDevice::CPU, 0).map_err(ort)?, memory(AllocationDevice::CPU, 0).map_err(ort)?),
        };
        for output in host {
            binding.bind_output_to_device(*output, &home).map_err(ort)?;
        }
        for output in device {
            binding.bind_output_to_device(output.as_str(), &there).map_err(ort)?;
        }
        let mut outputs = self.inner.run_binding(&binding).map_err(ort)?;
        let missing = |output: &str| RuntimeError::Model { model: name.clone(), message: format!("there is no output {output}") };
        let mut copied = vec![];
        for output in host {
            let value = outputs.get(output).ok_or_else(|| missing(output))?;
            copied.push(value.try_extract_tensor::<f32>().map_err(ort)?.1.to_vec());
        }
        let mut kept = vec![];
        for output in device {
            kept.push(Resident(outputs.remove(output).ok_or_else(|| missing(output))?));
        }
        Ok((copied, kept))
    }
}

fn owned(feed: &Feed<'_>) -> ort::Result<DynValue> {
    Ok(match *feed {
        Feed::F32(data, shape) => Tensor::from_array((shape.to_vec(), data.to_vec()))?.into_dyn(),
        Feed::I64(data, shape) => Tensor::from_array((shape.to_vec(), data.to_vec()))?.into_dyn(),
        Feed::I32(data, shape) => Tensor::from_array((shape.to_vec(), data.to_vec()))?.into_dyn(),
    })
}
