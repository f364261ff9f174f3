//! Products of 8-bit rows with stored 8-bit weights, and what is done with each sum before it goes to memory.

mod packed;

use std::sync::OnceLock;

use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::DynTensorValueType;
use ort::value::TensorElementType::{Float32, Int8, Int32, Uint8};

use super::{Shared, input, optional, sizes};
use crate::vector::tanh_gelu;
pub(super) use packed::is_there;
use packed::{COLUMNS, Packed};

/// Rows of a task take no more of the second-level cache than this, in bytes.
const ROWS_OF_A_TASK: usize = 512 << 10;

/// x [.., K] times a weight [K, N]: `(sum of (x - zero_point) * weight + step) * scale * scales`, and after that the scale of the row, the bias and
/// tanh's GELU, each where it is there.
pub struct Int8Product;

/// The same rounded to 8 bits again: `result / to_scale + to_zero_point`.
pub struct Int8ProductRounded;

const INPUTS: [OperatorInput; 6] = [
    OperatorInput::required(Uint8),
    OperatorInput::required(Int8),
    OperatorInput::required(Float32),
    OperatorInput::optional(Int32),
    OperatorInput::optional(Float32),
    OperatorInput::optional(Float32),
];

impl Operator for Int8Product {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "Int8Product"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        INPUTS
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, kernel: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let product = Product::new(kernel)?;
        Ok(Box::new(move |context: &ComputeContext| {
            let (x, shape) = (input(context, 0)?, product.shape(context)?);
            let mut y = context.output(0, shape)?.ok_or_else(|| ort::Error::new("output 0 is missing"))?;
            let (length, to) = {
                let y = y.try_extract_tensor_mut::<f32>()?.1;
                (y.len(), Shared(y.as_mut_ptr()))
            };
            product.run(context, x.try_extract_tensor::<u8>()?.1, length, &Target::Floats(to))
        }))
    }
}

impl Operator for Int8ProductRounded {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "Int8ProductRounded"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        INPUTS
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Uint8)]
    }

    fn create_kernel<'attr>(&self, kernel: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let product = Product::new(kernel)?;
        let scale = kernel.get::<f32>("to_scale").filter(|scale| *scale > 0.0);
        let (Some(scale), Some(zero)) = (scale, zero_point(kernel, "to_zero_point")) else {
            return Err(ort::Error::new("to_scale and to_zero_point must be there"));
        };
        Ok(Box::new(move |context: &ComputeContext| {
            let (x, shape) = (input(context, 0)?, product.shape(context)?);
            let mut y = context.output(0, shape)?.ok_or_else(|| ort::Error::new("output 0 is missing"))?;
            let (length, to) = {
                let y = y.try_extract_tensor_mut::<u8>()?.1;
                (y.len(), Shared(y.as_mut_ptr()))
            };
            product.run(
                context,
                x.try_extract_tensor::<u8>()?.1,
                length,
                &Target::Rounded { to, inverse: 1.0 / scale, zero: f32::from(zero) },
            )
        }))
    }
}

fn zero_point(kernel: &KernelContext, name: &str) -> Option<u8> {
    kernel.get::<i64>(name).and_then(|number| u8::try_from(number).ok())
}

/// Where results go, [M, N].
enum Target {
    Floats(Shared<f32>),
    Rounded { to: Shared<u8>, inverse: f32, zero: f32 },
}

/// One node of a graph.
struct Product {
    zero: u8,
    scale: f32,
    gelu: bool,
    /// [K, N]
    shape: [usize; 2],
    /// Made by the first run, on all threads.
    weight: OnceLock<Weight>,
}

/// What is the same in every run; by column, and as many as the panels have.
struct Weight {
    packed: Packed,
    /// Added to each sum.
    offsets: Vec<i32>,
    scales: Vec<f32>,
    bias: Option<Vec<f32>>,
}

impl Product {
    fn new(kernel: &KernelContext) -> ort::Result<Self> {
        if !is_there() {
            return Err(ort::Error::new("this processor has no dot products of 8-bit numbers"));
        }
        // It is laid out once, so that it must not change.
        let weight = kernel.constant_input::<DynTensorValueType>(1)?;
        let (Some(zero), Some(scale)) = (zero_point(kernel, "zero_point"), kernel.get::<f32>("scale")) else {
            return Err(ort::Error::new("zero_point and scale must be there"));
        };
        let gelu = kernel.get::<i64>("gelu").unwrap_or(0) != 0;
        let shape = sizes(weight.try_extract_tensor::<i8>()?.0);
        let [inputs, outputs] = shape[..] else { return Err(ort::Error::new("a weight is a matrix")) };
        Ok(Self { zero, scale, gelu, shape: [inputs, outputs], weight: OnceLock::new() })
    }

    /// The result's shape, [.., N].
    fn shape(&self, context: &ComputeContext) -> ort::Result<Vec<usize>> {
        let x = input(context, 0)?;
        let mut shape = sizes(x.try_extract_tensor::<u8>()?.0);
        if shape.pop() != Some(self.shape[0]) {
            return Err(ort::Error::new(format!("rows are not of {}", self.shape[0])));
        }
        shape.push(self.shape[1]);
        Ok(shape)
    }

    fn weight(&self, context: &ComputeContext) -> ort::Result<&Weight> {
        if let Some(weight) = self.weight.get() {
            return Ok(weight);
        }
        let outputs = self.shape[1];
        let numbers = input(context, 1)?;
        let mut result = Ok(());
        let packed =
            Packed::new(numbers.try_extract_tensor::<i8>()?.1, outputs, |panels, each| result = context.par_for(panels, 0, each));
        result?;
        let columns = packed.column_sums().len();
        let offset = |sum: &i32, step: i32| step.wrapping_sub(sum.wrapping_mul(i32::from(self.zero)));
        let steps = optional(context, 3)?;
        let steps =
            steps.as_ref().map(|steps| steps.try_extract_tensor::<i32>()).transpose()?.map_or(&[][..], |(_, steps)| steps);
        let scales = input(context, 2)?;
        let mut scales: Vec<f32> = scales.try_extract_tensor::<f32>()?.1.iter().map(|scale| scale * self.scale).collect();
        let bias = optional(context, 4)?;
        let mut bias = bias.as_ref().map(|bias| bias.try_extract_tensor::<f32>()).transpose()?.map(|(_, bias)| bias.to_vec());
        if scales.len() != outputs
            || !(steps.is_empty() || steps.len() == outputs)
            || bias.as_ref().is_some_and(|bias| bias.len() != outputs)
        {
            return Err(ort::Error::new(format!("scales, steps or a bias do not fit {outputs} columns")));
        }
        let steps = steps.iter().copied().chain(std::iter::repeat(0));
        let offsets = packed.column_sums().iter().zip(steps).map(|(sum, step)| offset(sum, step)).collect();
        scales.resize(columns, 0.0);
        if let Some(bias) = &mut bias {
            bias.resize(columns, 0.0);
        }
        Ok(self.weight.get_or_init(|| Weight { packed, offsets, scales, bias }))
    }

    /// All rows of `x`; the result has `length` numbers.
    fn run(&self, context: &ComputeContext, x: &[u8], length: usize, target: &Target) -> ort::Result<()> {
        let [inputs, outputs] = self.shape;
        if inputs == 0 || outputs == 0 || x.is_empty() {
            return Ok(());
        }
        let weight = self.weight(context)?;
        let (rows, width) = (x.len() / inputs, weight.packed.row_len());
        let row_scales = optional(context, 5)?;
        let row_scales =
            row_scales.as_ref().map(|scales| scales.try_extract_tensor::<f32>()).transpose()?.map(|(_, scales)| scales);
        if length != rows * outputs || row_scales.is_some_and(|scales| scales.len() != rows) {
            return Err(ort::Error::new(format!("{rows} rows do not fit {length} results or the rows' scales")));
        }
        let padded: Vec<u8>;
        let x = if width == inputs {
            x
        } else {
            padded = x
                .chunks_exact(inputs)
                .flat_map(|row| row.iter().copied().chain(std::iter::repeat_n(0, width - inputs)))
                .collect();
            &padded
        };
        let block = (ROWS_OF_A_TASK / width).next_multiple_of(8).min(rows);
        let panels = weight.packed.panels();
        context.par_for(rows.div_ceil(block) * panels, 0, |task| {
            let (first, panel) = (task / panels * block, task % panels);
            let count = block.min(rows - first);
            let task = Task {
                weight,
                x: &x[first * width..][..count * width],
                row_scales: row_scales.map(|scales| &scales[first..][..count]),
                first,
                panel,
                gelu: self.gelu,
                outputs,
                target,
            };
            task.run();
        })
    }
}

/// Some rows times the columns of a panel.
struct Task<'a> {
    weight: &'a Weight,
    x: &'a [u8],
    row_scales: Option<&'a [f32]>,
    /// The first row, of all.
    first: usize,
    panel: usize,
    gelu: bool,
    outputs: usize,
    target: &'a Target,
}

impl Task<'_> {
    fn run(&self) {
        #[cfg(target_arch = "x86_64")]
        {
            #[target_feature(enable = "avx512f,avx512vnni")]
            fn wide(task: &Task) {
                task.rows_of_a_panel();
            }
            assert!(is_there(), "a kernel is made where the processor has the instructions");
            // SAFETY: it has them, as just asked.
            unsafe { wide(self) }
        }
    }

    #[inline(always)]
    fn rows_of_a_panel(&self) {
        let start = self.panel * COLUMNS;
        let count = COLUMNS.min(self.outputs - start);
        let weight = self.weight;
        let of_panel = |all: &'_ [f32]| -> [f32; COLUMNS] { std::array::from_fn(|column| all[start + column]) };
        let offsets: [i32; COLUMNS] = std::array::from_fn(|column| weight.offsets[start + column]);
        let (scales, bias) = (of_panel(&weight.scales), weight.bias.as_ref().map(|bias| of_panel(bias)));
        weight.packed.multiply(self.x, self.panel, |first, sums| {
            for (row, sums) in sums.iter().enumerate() {
                let row = first + row;
                let mut values: [f32; COLUMNS] =
                    std::array::from_fn(|column| sums[column].wrapping_add(offsets[column]) as f32 * scales[column]);
                if let Some(row_scales) = self.row_scales {
                    let scale = row_scales[row];
                    values.iter_mut().for_each(|value| *value *= scale);
                }
                if let Some(bias) = &bias {
                    values.iter_mut().zip(bias).for_each(|(value, bias)| *value += bias);
                }
                if self.gelu {
                    values.iter_mut().for_each(|value| *value = tanh_gelu::<true>(*value));
                }
                let at = (self.first + row) * self.outputs + start;
                match self.target {
                    // SAFETY: these columns of this row are within the output, and this task's alone.
                    Target::Floats(to) => store(&values, unsafe { to.part(at, count) }),
                    Target::Rounded { to, inverse, zero } => {
                        let rounded = std::array::from_fn(|column| round(values[column] * inverse, *zero));
                        // SAFETY: as above.
                        store(&rounded, unsafe { to.part(at, count) });
                    }
                }
            }
        });
    }
}

/// As many as there is room for: mostly all, which is known when this is compiled.
#[inline(always)]
fn store<T: Copy>(values: &[T; COLUMNS], to: &mut [T]) {
    match to.first_chunk_mut::<COLUMNS>() {
        Some(to) => *to = *values,
        None => to.copy_from_slice(&values[..to.len()]),
    }
}

/// `x + zero` as the nearest of 0..=255, of two as near the even `x`.
#[inline(always)]
fn round(x: f32, zero: f32) -> u8 {
    /// Adding it leaves a number rounded to an integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let (low, high) = (-zero, 255.0 - zero);
    let x = if x > low { x } else { low };
    let x = if x < high { x } else { high };
    ((x + ROUND) + zero).to_bits() as u8
}

#[cfg(test)]
mod tests;
