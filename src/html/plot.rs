//! Charts as SVG and PNG files. PNG labels are Latin, from a font that is built in; SVG text is drawn by the viewer's fonts.

use std::io::Cursor;
use std::ops::Range;
use std::sync::Once;

use anyhow::{Context, Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, ValueFormatter};
use plotters::prelude::*;
use plotters::style::register_font;

/// Of the SVG, in pixels.
pub const SIZE: (u32, u32) = (800, 500);
/// The PNG is drawn at twice the size, for sharp displays.
pub const PNG_SCALE: u32 = 2;
const FONT: &str = "sans-serif";

const INK: RGBColor = RGBColor(29, 33, 38);
const GRID: RGBColor = RGBColor(223, 227, 232);

/// Colours of curves (and of bars the first), which more curves than these begin again.
pub const COLORS: [RGBColor; 5] =
    [RGBColor(63, 111, 159), RGBColor(196, 85, 43), RGBColor(76, 138, 91), RGBColor(139, 99, 168), RGBColor(160, 138, 44)];

/// Where a chart is drawn.
pub type Area<DB> = DrawingArea<DB, Shift>;
/// Why it could not be.
pub type Failed<DB> = DrawingAreaErrorKind<<DB as DrawingBackend>::ErrorType>;
/// A chart whose axes have been drawn.
pub type Plot<'a, DB, X, Y> = ChartContext<'a, DB, Cartesian2d<X, Y>>;
type Numbers = <Range<f64> as AsRangedCoord>::CoordDescType;

/// What can be drawn, `scale` pixels in place of each of the SVG.
pub trait Drawing {
    /// # Errors
    /// The backend refuses.
    fn draw<DB: DrawingBackend>(&self, area: &Area<DB>, scale: u32) -> Result<(), Failed<DB>>;
}

/// A drawing as SVG.
///
/// # Errors
/// It cannot be drawn.
pub fn svg(drawing: &impl Drawing) -> Result<Vec<u8>> {
    let mut text = String::new();
    render(drawing, &SVGBackend::with_string(&mut text, SIZE).into_drawing_area(), 1)?;
    Ok(text.into_bytes())
}

/// A drawing as PNG.
///
/// # Errors
/// It cannot be drawn.
pub fn png(drawing: &impl Drawing) -> Result<Vec<u8>> {
    let (width, height) = (SIZE.0 * PNG_SCALE, SIZE.1 * PNG_SCALE);
    let mut pixels = vec![0; (width * height * 3) as usize];
    render(drawing, &BitMapBackend::with_buffer(&mut pixels, (width, height)).into_drawing_area(), PNG_SCALE)?;
    let picture = image::RgbImage::from_raw(width, height, pixels).context("the picture has another size than its buffer")?;
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, image::ImageFormat::Png)?;
    Ok(bytes.into_inner())
}

fn render<DB: DrawingBackend>(drawing: &impl Drawing, area: &Area<DB>, scale: u32) -> Result<()> {
    static FONTS: Once = Once::new();
    // Fails only for bytes that are no font, which the built-in ones are.
    FONTS.call_once(|| drop(register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)));
    let drawn = area.fill(&WHITE).and_then(|()| drawing.draw(area, scale)).and_then(|()| area.present());
    drawn.map_err(|error| anyhow!("cannot draw: {error}"))
}

fn font(size: u32, scale: u32) -> TextStyle<'static> {
    (FONT, f64::from(size * scale)).into_font().color(&INK)
}

/// One axis of a chart.
pub struct Axis<'a, R: AsRangedCoord> {
    pub name: Option<&'a str>,
    pub range: R,
    /// Labels, at most; lines of the grid stand at them, where there is one.
    pub labels: usize,
    pub has_grid: bool,
    pub format: &'a dyn Fn(&R::Value) -> String,
}

/// What a chart has besides its axes and data. Sizes are pixels of the SVG.
pub struct Frame<'a> {
    pub title: &'a str,
    pub title_size: u32,
    /// Of the axes' names.
    pub name_size: u32,
    /// Room for the labels below and at the left.
    pub room: (u32, u32),
    /// Lines of axes and grid have one pixel at any scale.
    pub has_hairlines: bool,
}

impl Frame<'_> {
    /// Draws title, grid and axes.
    ///
    /// # Errors
    /// The backend refuses.
    pub fn plot<'a, DB: DrawingBackend + 'a, X: AsRangedCoord, Y: AsRangedCoord>(
        &self,
        area: &Area<DB>,
        scale: u32,
        x: Axis<X>,
        y: Axis<Y>,
    ) -> Result<Plot<'a, DB, X::CoordDescType, Y::CoordDescType>, Failed<DB>>
    where
        X::CoordDescType: ValueFormatter<X::Value>,
        Y::CoordDescType: ValueFormatter<Y::Value>,
    {
        let mut plot = ChartBuilder::on(area)
            .caption(self.title, font(self.title_size, scale))
            .margin(14 * scale)
            .x_label_area_size(self.room.0 * scale)
            .y_label_area_size(self.room.1 * scale)
            .build_cartesian_2d(x.range, y.range)?;
        let stroke = if self.has_hairlines { 1 } else { scale };
        let mut mesh = plot.configure_mesh();
        mesh.light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(stroke))
            .axis_style(INK.stroke_width(stroke))
            .axis_desc_style(font(self.name_size, scale))
            .label_style(font(14, scale))
            .x_labels(x.labels)
            .y_labels(y.labels)
            .x_label_formatter(x.format)
            .y_label_formatter(y.format);
        if let Some(name) = x.name {
            mesh.x_desc(name);
        }
        if let Some(name) = y.name {
            mesh.y_desc(name);
        }
        if !x.has_grid {
            mesh.disable_x_mesh();
        }
        if !y.has_grid {
            mesh.disable_y_mesh();
        }
        mesh.draw()?;
        Ok(plot)
    }
}

/// A curve and how it looks.
pub struct Curve<'a> {
    pub name: &'a str,
    pub points: &'a [(f64, f64)],
    pub color: RGBColor,
    /// Pixels of its points; 0 for none.
    pub dots: u32,
}

/// Draws curves, and a legend at `place`.
///
/// # Errors
/// The backend refuses.
pub fn curves<'a, DB: DrawingBackend + 'a>(
    plot: &mut Plot<'a, DB, Numbers, Numbers>,
    scale: u32,
    curves: &[Curve],
    place: SeriesLabelPosition,
) -> Result<(), Failed<DB>> {
    for &Curve { name, points, color, dots } in curves {
        let line = LineSeries::new(points.iter().copied(), color.filled().stroke_width(2 * scale)).point_size(dots * scale);
        let key = move |(x, y): (i32, i32)| PathElement::new([(x, y), (x + 18 * scale as i32, y)], color.stroke_width(2 * scale));
        plot.draw_series(line)?.label(name).legend(key);
    }
    plot.configure_series_labels()
        .position(place)
        .label_font(font(15, scale))
        .legend_area_size(24 * scale)
        .background_style(WHITE)
        .border_style(GRID)
        .draw()
}
