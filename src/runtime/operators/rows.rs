//! Rows rounded to 8 bits, and brought back.

use ort::operator::{BoxedKernel, ComputeContext, KernelContext, Operator, OperatorInput, OperatorOutput};
use ort::value::TensorElementType::{Float32, Uint8};

use super::{Shared, input, output, sizes};

/// Each row of x [M, K] rounded with a scale of its own: `x = scale * (number - 128)`.
pub struct QuantizeRows;

impl Operator for QuantizeRows {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        "QuantizeRows"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Uint8), OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        Ok(Box::new(quantize_rows))
    }
}

fn quantize_rows(context: &ComputeContext) -> ort::Result<()> {
    let x = input(context, 0)?;
    let (shape, x) = x.try_extract_tensor::<f32>()?;
    let [rows, width] = sizes(shape)[..] else { return Err(ort::Error::new("rows are of a matrix")) };
    let mut numbers = output(context, 0, [rows, width])?;
    let mut scales = output(context, 1, [rows, 1])?;
    let numbers = Shared(numbers.try_extract_tensor_mut::<u8>()?.1.as_mut_ptr());
    let scales = Shared(scales.try_extract_tensor_mut::<f32>()?.1.as_mut_ptr());
    context.par_for(rows, 0, |row| {
        // SAFETY: the outputs have `rows` rows, and each is written by one call.
        let (numbers, scale) = unsafe { (numbers.part(row * width, width), scales.part(row, 1)) };
        scale[0] = passes::round_row(&x[row * width..][..width], numbers);
    })
}

/// x [M, N] times the scale of its row, and where there is a bias [N], that added.
pub struct ScaleRows;

impl Operator for ScaleRows {
    type Kernel<'attr> = BoxedKernel<'attr>;

    const INPLACES: &[(u32, u32)] = &[(0, 0)];

    fn name(&self) -> &str {
        "ScaleRows"
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [OperatorInput::required(Float32), OperatorInput::required(Float32), OperatorInput::optional(Float32)]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(Float32)]
    }

    fn create_kernel<'attr>(&self, _: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        Ok(Box::new(scale_rows))
    }
}

fn scale_rows(context: &ComputeContext) -> ort::Result<()> {
    let x = input(context, 0)?;
    let (shape, data) = x.try_extract_tensor::<f32>()?;
    let [rows, width] = sizes(shape)[..] else { return Err(ort::Error::new("rows are of a matrix")) };
    // The output may be the same memory: from here on both are known by their places only.
    let from = Shared(data.as_ptr().cast_mut());
    let scales = input(context, 1)?;
    let (_, scales) = scales.try_extract_tensor::<f32>()?;
    let bias = if context.num_inputs()? > 2 { context.input(2)? } else { None };
    let bias: &[f32] = match &bias {
        Some(bias) => bias.try_extract_tensor::<f32>()?.1,
        None => &[],
    };
    if scales.len() != rows || !(bias.is_empty() || bias.len() == width) {
        return Err(ort::Error::new(format!("{} scales and a bias of {} for {rows} rows of {width}", scales.len(), bias.len())));
    }
    let mut y = output(context, 0, [rows, width])?;
    let to = Shared(y.try_extract_tensor_mut::<f32>()?.1.as_mut_ptr());
    let is_same = std::ptr::eq(from.0, to.0);
    context.par_for(rows, 0, |row| {
        // SAFETY: the output has `rows` rows, and each is written by one call.
        let target = unsafe { to.part(row * width, width) };
        if !is_same {
            // SAFETY: the input has as many, in other memory.
            target.copy_from_slice(unsafe { from.part(row * width, width) });
        }
        match bias {
            [] => passes::scale_row(target, scales[row]),
            bias => passes::scale_and_add(target, scales[row], bias),
        }
    })
}

mod passes {
    use super::bodies;
    use crate::vector::for_processor;

    for_processor!(round_row(x: &[f32], numbers: &mut [u8]) -> f32);
    for_processor!(scale_row(x: &mut [f32], scale: f32));
    for_processor!(scale_and_add(x: &mut [f32], scale: f32, bias: &[f32]));
}

mod bodies {
    /// Adding it leaves a number rounded to an integer, of two as near the even one, in the low bits; 128 more, since the numbers are around that.
    const ROUND: f32 = 12_582_912.0 + 128.0;

    /// Returns the scale. A row that holds something else than numbers has a scale that is none.
    #[inline(always)]
    pub fn round_row<const FMA: bool>(x: &[f32], numbers: &mut [u8]) -> f32 {
        // Without their sign, floats are in the order of integers.
        let largest = x.iter().fold(0i32, |most, x| most.max((x.to_bits() & 0x7fff_ffff) as i32));
        let largest = f32::from_bits(largest as u32);
        let scale = if largest < 1e-12 { 1e-12 } else { largest } * (1.0 / 127.0);
        for (number, x) in numbers.iter_mut().zip(x) {
            *number = (x / scale + ROUND).to_bits() as u8;
        }
        scale
    }

    #[inline(always)]
    pub fn scale_row<const FMA: bool>(x: &mut [f32], scale: f32) {
        x.iter_mut().for_each(|x| *x *= scale);
    }

    #[inline(always)]
    pub fn scale_and_add<const FMA: bool>(x: &mut [f32], scale: f32, bias: &[f32]) {
        x.iter_mut().zip(bias).for_each(|(x, bias)| *x = *x * scale + bias);
    }
}
