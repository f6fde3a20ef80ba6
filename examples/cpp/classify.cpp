// A bundle from C++, with OpenVINO: the graph takes raw RGB pixels, so there is no preprocessing to write again.
//
//     classify BUNDLE cat.jpg [THREADS]
//
// prints the five best classes and their scores. BUNDLE may also be one of its files, BUNDLE/model.onnx.

#include <exception>
#include <iostream>
#include <memory>
#include <string>

#include <openvino/runtime/core.hpp>

#include "bundle.h"
#include "image.h"

// OpenVINO 2026.4 reuses the memory of an If's result too early, which makes answers wrong; that of outputs is kept.
void keep_results_of_branches(const std::shared_ptr<ov::Model>& model) {
    for (const auto& operation : model->get_ordered_ops())
        if (std::string(operation->get_type_name()) == "If")
            for (const auto& output : operation->outputs()) model->add_output(output);
}

int run(int count, char** arguments) {
    if (count < 3) {
        std::cerr << "usage: classify BUNDLE IMAGE.jpg|IMAGE.png [THREADS]\n";
        return 2;
    }
    const auto wanted = [](const nlohmann::json& artifact) {  // the INT8 form for CPUs
        return artifact.at("kind") == "onnx" && artifact.at("target") == "cpu";
    };
    const Bundle bundle(arguments[1], wanted);
    Image image = read_image(arguments[2]);

    ov::Core core;
    auto model = core.read_model(bundle.file.string());
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
    bundle.print_best(logits.data<const float>(), logits.get_size());
    return 0;
}

int main(int count, char** arguments) { return reporting_errors(run, count, arguments); }
