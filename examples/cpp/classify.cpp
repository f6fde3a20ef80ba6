// A bundle from C++, with OpenVINO: the graph takes raw RGB pixels, so there is no preprocessing to write again.
//
//     classify BUNDLE/model.int8-cpu.onnx cat.ppm [THREADS]
//
// prints the five best classes: index (of `labels` in manifest.json) and probability. A PPM is the plainest image file:
// `python -c "import sys; from PIL import Image; Image.open(sys.argv[1]).convert('RGB').save(sys.argv[2])" cat.jpg cat.ppm`

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <fstream>
#include <iostream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/runtime/core.hpp>

struct Image {
    size_t height = 0, width = 0;
    std::vector<uint8_t> pixels;  // (height, width, 3) RGB
};

Image read_ppm(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    std::string kind;
    size_t most = 0;
    Image image;
    const auto number = [&file](size_t& value) {
        while ((file >> std::ws) && file.peek() == '#') file.ignore(1 << 20, '\n');
        file >> value;
    };
    file >> kind;
    number(image.width);
    number(image.height);
    number(most);
    file.get();  // the one blank before the pixels
    const size_t limit = 1 << 16;
    if (!file || kind != "P6" || most != 255 || image.width == 0 || image.height == 0 || image.width > limit ||
        image.height > limit || image.width * image.height > 89478485)
        throw std::runtime_error(path + " is no binary PPM of 8 bits a channel (or too large)");
    image.pixels.resize(image.height * image.width * 3);
    file.read(reinterpret_cast<char*>(image.pixels.data()), static_cast<std::streamsize>(image.pixels.size()));
    if (!file) throw std::runtime_error(path + " is truncated");
    return image;
}

// OpenVINO 2026.4 reuses the memory of an If's result too early, which makes answers wrong; outputs' memory is left alone.
void keep_results_of_branches(const std::shared_ptr<ov::Model>& model) {
    for (const auto& operation : model->get_ordered_ops())
        if (std::string(operation->get_type_name()) == "If")
            for (const auto& output : operation->outputs()) model->add_output(output);
}

int run(int count, char** arguments) {
    if (count < 3) {
        std::cerr << "usage: classify MODEL.onnx IMAGE.ppm [THREADS]\n";
        return 2;
    }
    Image image = read_ppm(arguments[2]);

    ov::Core core;
    auto model = core.read_model(arguments[1]);
    keep_results_of_branches(model);
    // Left alone, OpenVINO computes in bfloat16 where the processor can: faster, but not what was measured as FP32.
    ov::AnyMap settings{ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
                        ov::hint::inference_precision(ov::element::f32)};
    if (count > 3) settings.emplace(ov::inference_num_threads(std::stoi(arguments[3])));
    auto request = core.compile_model(model, "CPU", settings).create_infer_request();

    // (batch, height, width, channels): the pixels are used where they lie
    request.set_tensor("image", ov::Tensor(ov::element::u8, {1, image.height, image.width, 3}, image.pixels.data()));
    request.infer();
    const ov::Tensor logits = request.get_tensor("logits");
    const float* values = logits.data<const float>();

    std::vector<double> scores(values, values + logits.get_size());
    const double highest = *std::max_element(scores.begin(), scores.end());
    for (double& score : scores) score = std::exp(score - highest);
    const double sum = std::accumulate(scores.begin(), scores.end(), 0.0);
    std::vector<size_t> order(scores.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] > scores[b]; });
    for (size_t place = 0; place < std::min<size_t>(5, order.size()); ++place)
        std::printf("%zu\t%.6f\n", order[place], scores[order[place]] / sum);
    return 0;
}

int main(int count, char** arguments) {
    try {
        return run(count, arguments);
    } catch (const std::exception& error) {
        std::cerr << "Error: " << error.what() << "\n";
        return 1;
    }
}
