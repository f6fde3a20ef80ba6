// JPEG and PNG files -> RGB pixels as vitdeploy's own decoder makes them: turned as EXIF says, transparency over white,
// the high byte of 16-bit channels, no colour management. Uses libjpeg and libpng (Debian: libjpeg-dev libpng-dev).

#pragma once

#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include <jpeglib.h>
#include <png.h>

struct Image {
    size_t height = 0, width = 0;
    std::vector<uint8_t> pixels;  // (height, width, 3) RGB
};

namespace decoding {

constexpr size_t MOST_PIXELS = 89478485;
using File = std::unique_ptr<FILE, int (*)(FILE*)>;

inline void check_size(size_t height, size_t width) {
    if (height == 0 || width == 0 || height * width > MOST_PIXELS)
        throw std::runtime_error("it has too many pixels, or none");
}

// EXIF's orientation, 1 (upright) to 8, of an APP1 segment; 1 where it says none.
inline int orientation(const uint8_t* data, size_t size) {
    if (size < 14 || std::string(data, data + 6) != std::string("Exif\0\0", 6)) return 1;
    data += 6, size -= 6;  // a TIFF block: its byte order, 42, where the first directory is
    const bool little = data[0] == 'I';
    const auto number = [&](size_t at, size_t count) {
        size_t value = 0;
        for (size_t i = 0; i < count; ++i) value = value << 8 | data[at + (little ? count - 1 - i : i)];
        return value;
    };
    const size_t directory = number(4, 4);
    if (directory + 2 > size) return 1;
    const size_t entries = number(directory, 2);
    for (size_t entry = 0; entry < entries && directory + 14 + 12 * entry <= size; ++entry) {
        const size_t at = directory + 2 + 12 * entry;
        if (number(at, 2) == 0x0112) {
            const size_t value = number(at + 8, 2);
            return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
        }
    }
    return 1;
}

inline Image turned(const Image& from, int orientation) {
    if (orientation == 1) return from;
    const bool swapped = orientation > 4;
    Image made;
    made.height = swapped ? from.width : from.height;
    made.width = swapped ? from.height : from.width;
    made.pixels.resize(from.pixels.size());
    const bool mirrored_x = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool mirrored_y = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (size_t y = 0; y < made.height; ++y)
        for (size_t x = 0; x < made.width; ++x) {
            size_t row = swapped ? x : y, column = swapped ? y : x;
            if (mirrored_y) row = from.height - 1 - row;
            if (mirrored_x) column = from.width - 1 - column;
            for (size_t channel = 0; channel < 3; ++channel)
                made.pixels[3 * (y * made.width + x) + channel] =
                    from.pixels[3 * (row * from.width + column) + channel];
        }
    return made;
}

struct JpegErrors {
    jpeg_error_mgr manager;
    jmp_buf back;
    char message[JMSG_LENGTH_MAX];
};

inline Image read_jpeg(FILE* file) {
    Image image;
    int turn = 1;
    JpegErrors errors;
    jpeg_decompress_struct jpeg;
    jpeg.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = [](j_common_ptr jpeg) {
        auto* errors = reinterpret_cast<JpegErrors*>(jpeg->err);
        jpeg->err->format_message(jpeg, errors->message);
        longjmp(errors->back, 1);
    };
    errors.manager.output_message = [](j_common_ptr) {};
    if (setjmp(errors.back)) {
        jpeg_destroy_decompress(&jpeg);
        throw std::runtime_error(errors.message);
    }
    jpeg_create_decompress(&jpeg);
    jpeg_stdio_src(&jpeg, file);
    jpeg_save_markers(&jpeg, JPEG_APP0 + 1, 0xFFFF);
    jpeg_read_header(&jpeg, TRUE);
    jpeg.out_color_space = JCS_RGB;  // refused by libjpeg for CMYK
    jpeg_start_decompress(&jpeg);
    image.height = jpeg.output_height;
    image.width = jpeg.output_width;
    const bool fits = image.height * image.width <= MOST_PIXELS;
    if (fits) image.pixels.resize(image.height * image.width * 3);
    while (fits && jpeg.output_scanline < jpeg.output_height) {
        JSAMPROW row = image.pixels.data() + static_cast<size_t>(jpeg.output_scanline) * image.width * 3;
        jpeg_read_scanlines(&jpeg, &row, 1);
    }
    for (auto* marker = jpeg.marker_list; marker != nullptr; marker = marker->next)
        if (turn == 1) turn = orientation(marker->data, marker->data_length);
    const bool damaged = fits && jpeg.err->num_warnings > 0;
    jpeg_destroy_decompress(&jpeg);
    check_size(image.height, image.width);
    if (damaged) throw std::runtime_error("it is truncated or damaged");
    return turned(image, turn);
}

inline Image read_png(FILE* file) {
    Image image;
    std::vector<uint8_t> rgba;
    std::vector<png_bytep> rows;
    std::string message = "it is damaged";
    png_structp png = png_create_read_struct(
        PNG_LIBPNG_VER_STRING, &message,
        [](png_structp png, png_const_charp text) {
            *static_cast<std::string*>(png_get_error_ptr(png)) = text;
            longjmp(png_jmpbuf(png), 1);
        },
        [](png_structp, png_const_charp) {});
    png_infop info = png == nullptr ? nullptr : png_create_info_struct(png);
    if (info == nullptr) throw std::bad_alloc();
    if (setjmp(png_jmpbuf(png))) {
        png_destroy_read_struct(&png, &info, nullptr);
        throw std::runtime_error(message);
    }
    png_init_io(png, file);
    png_read_info(png, info);
    image.height = png_get_image_height(png, info);
    image.width = png_get_image_width(png, info);
    if (image.height * image.width > MOST_PIXELS) png_error(png, "it has too many pixels");
    png_set_expand(png);  // palettes, few bits, and transparent colours
    png_set_strip_16(png);
    png_set_gray_to_rgb(png);
    png_set_add_alpha(png, 255, PNG_FILLER_AFTER);
    png_set_interlace_handling(png);
    png_read_update_info(png, info);
    rgba.resize(image.height * image.width * 4);
    for (size_t y = 0; y < image.height; ++y) rows.push_back(rgba.data() + y * image.width * 4);
    png_read_image(png, rows.data());
    png_read_end(png, nullptr);
    png_destroy_read_struct(&png, &info, nullptr);
    check_size(image.height, image.width);
    image.pixels.resize(image.height * image.width * 3);
    for (size_t pixel = 0; pixel < image.height * image.width; ++pixel)
        for (size_t channel = 0; channel < 3; ++channel) {
            const unsigned alpha = rgba[4 * pixel + 3];
            const unsigned sum = rgba[4 * pixel + channel] * alpha + 255 * (255 - alpha);
            image.pixels[3 * pixel + channel] = static_cast<uint8_t>((sum + 127) / 255);
        }
    return image;
}

}  // namespace decoding

inline Image read_image(const std::string& path) {
    decoding::File file(std::fopen(path.c_str(), "rb"), &std::fclose);
    if (!file) throw std::runtime_error(path + ": can't open it");
    const int first = std::fgetc(file.get()), second = std::fgetc(file.get());
    std::rewind(file.get());
    try {
        if (first == 0xFF && second == 0xD8) return decoding::read_jpeg(file.get());
        if (first == 0x89 && second == 'P') return decoding::read_png(file.get());
        throw std::runtime_error("it is neither a JPEG nor a PNG file");
    } catch (const std::exception& error) {
        throw std::runtime_error(path + ": " + error.what());
    }
}
