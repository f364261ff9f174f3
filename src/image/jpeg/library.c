/* libjpeg-turbo behind one function that reports instead of printing, and never exits the program. See library.rs. */

#include <setjmp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <jpeglib.h>
#include <jerror.h>

/* Beside libjpeg's own codes, which are positive. */
#define TOO_MUCH_WORK (-1)
#define OTHER_SIZE (-2)

/* The same struct in library.rs. */
struct clipcap_jpeg_report {
  int32_t code;
  uint8_t data_ended;
  uint8_t bad_data;
  uint8_t arithmetic;
  uint64_t skipped;
  uint64_t skipped_end;
  char message[JMSG_LENGTH_MAX];
};

struct decoder {
  struct jpeg_decompress_struct cinfo;
  struct jpeg_error_mgr errors;
  struct jpeg_progress_mgr progress;
  jmp_buf escape;
  struct clipcap_jpeg_report *report;
  const unsigned char *data;
  size_t length;
  uint64_t work;
  uint64_t max_work;
  int reading_ahead;
};

static struct decoder *decoder_of(j_common_ptr cinfo) { return (struct decoder *)cinfo->client_data; }

static void give_up(j_common_ptr cinfo) {
  struct decoder *d = decoder_of(cinfo);
  d->report->code = cinfo->err->msg_code;
  cinfo->err->format_message(cinfo, d->report->message);
  longjmp(d->escape, 1);
}

static void be_silent(j_common_ptr cinfo) { (void)cinfo; }

/* Where the source stands. At the end of the data the library goes on in a buffer of its own, with an end marker. */
static uint64_t offset(const struct decoder *d) {
  uintptr_t at = (uintptr_t)d->cinfo.src->next_input_byte, data = (uintptr_t)d->data;
  return at >= data && at <= data + d->length ? (uint64_t)(at - data) : (uint64_t)d->length;
}

/* Level -1 is a warning; the rest is chatter. */
static void take_note(j_common_ptr cinfo, int level) {
  struct decoder *d = decoder_of(cinfo);
  struct clipcap_jpeg_report *report = d->report;
  if (level >= 0) return;
  cinfo->err->num_warnings++;
  switch (cinfo->err->msg_code) {
  case JWRN_HIT_MARKER:
    if (d->cinfo.unread_marker == JPEG_EOI) report->data_ended = 1;
    else report->bad_data = 1;
    break;
  case JWRN_HUFF_BAD_CODE:
  case JWRN_ARITH_BAD_CODE:
  case JWRN_MUST_RESYNC:
    report->bad_data = 1;
    break;
  case JWRN_EXTRANEOUS_DATA:
    /* The longest stretch counts; it ends where the source stands. */
    if ((uint64_t)cinfo->err->msg_parm.i[0] > report->skipped && d->cinfo.input_scan_number > 0) {
      report->skipped = (uint64_t)cinfo->err->msg_parm.i[0];
      report->skipped_end = offset(d);
    }
    break;
  default:
    break;
  }
}

/* An arithmetic decoder takes as long as it likes for a bit. */
static uint64_t cost(struct decoder *d, uint64_t blocks) { return d->cinfo.arith_code ? 24 * blocks : blocks; }

static void spend(struct decoder *d, uint64_t work) {
  d->work += work;
  if (d->work > d->max_work) {
    d->report->code = TOO_MUCH_WORK;
    longjmp(d->escape, 1);
  }
}

/* Called for each row of blocks that is read from a file of several scans, and for each row of pixels that is given out. */
static void count_work(j_common_ptr cinfo) {
  struct decoder *d = decoder_of(cinfo);
  uint64_t blocks = 16; /* a scan's own cost, however small the picture */
  int i;
  if (!d->reading_ahead) return;
  for (i = 0; i < d->cinfo.comps_in_scan; i++) {
    const jpeg_component_info *component = d->cinfo.cur_comp_info[i];
    blocks += (uint64_t)component->width_in_blocks * (uint64_t)component->v_samp_factor;
  }
  spend(d, cost(d, blocks));
}

/* `pixels` takes `height` rows of `width` times `channels` bytes: 3 for RGB, 4 for a file of four colours (CMYK as stored). */
void clipcap_jpeg_decode(const unsigned char *data, size_t length, unsigned denominator, uint64_t max_work,
                         size_t max_memory, unsigned char *pixels, unsigned width, unsigned height, unsigned channels,
                         struct clipcap_jpeg_report *report) {
  struct decoder d;
  int i;
  memset(&d, 0, sizeof(d));
  memset(report, 0, sizeof(*report));
  d.report = report;
  d.data = data;
  d.length = length;
  d.max_work = max_work;
  d.cinfo.err = jpeg_std_error(&d.errors);
  d.errors.error_exit = give_up;
  d.errors.emit_message = take_note;
  d.errors.output_message = be_silent;
  d.cinfo.client_data = &d;
  if (setjmp(d.escape)) {
    jpeg_destroy_decompress(&d.cinfo);
    return;
  }
  jpeg_create_decompress(&d.cinfo);
  d.cinfo.mem->max_memory_to_use = (long)max_memory;
  jpeg_mem_src(&d.cinfo, data, length);
  jpeg_read_header(&d.cinfo, TRUE);
  if (d.cinfo.arith_code) {
    report->arithmetic = 1;
    for (i = 0; i < d.cinfo.num_components; i++) {
      const jpeg_component_info *component = &d.cinfo.comp_info[i];
      spend(&d, cost(&d, (uint64_t)component->width_in_blocks * (uint64_t)component->height_in_blocks));
    }
  }
  d.progress.progress_monitor = count_work;
  d.cinfo.progress = &d.progress;
  d.cinfo.out_color_space = channels == 4 ? JCS_CMYK : JCS_RGB;
  d.cinfo.scale_num = 1;
  d.cinfo.scale_denom = denominator;
  d.reading_ahead = 1;
  jpeg_start_decompress(&d.cinfo);
  d.reading_ahead = 0;
  if (d.cinfo.output_width != width || d.cinfo.output_height != height ||
      d.cinfo.output_components != (int)channels) {
    report->code = OTHER_SIZE;
    longjmp(d.escape, 1);
  }
  while (d.cinfo.output_scanline < height) {
    JSAMPROW row = pixels + (size_t)d.cinfo.output_scanline * width * channels;
    jpeg_read_scanlines(&d.cinfo, &row, 1);
  }
  jpeg_finish_decompress(&d.cinfo);
  jpeg_destroy_decompress(&d.cinfo);
}
