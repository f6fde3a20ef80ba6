// An engine of a bundle from C++, with TensorRT 10 or 11 (as on a Jetson) or TensorRT-RTX, and nothing of Python.
//
//     classify_tensorrt BUNDLE cat.jpg                                    the first engine of the bundle
//     classify_tensorrt BUNDLE/engines/tensorrt-int8.engine cat.jpg       this one
//
// prints the five best classes and their scores. An engine file is code: load only those that you built.

#include <exception>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include <NvInfer.h>
#include <cuda_runtime_api.h>

#include "bundle.h"
#include "image.h"

class Log : public nvinfer1::ILogger {
    void log(Severity severity, const char* message) noexcept override {
        if (severity <= Severity::kWARNING) std::cerr << message << "\n";
    }
};

void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

struct DeviceMemory {
    void* address = nullptr;
    explicit DeviceMemory(size_t size) { check(cudaMalloc(&address, size)); }
    ~DeviceMemory() { cudaFree(address); }
    DeviceMemory(const DeviceMemory&) = delete;
    DeviceMemory& operator=(const DeviceMemory&) = delete;
};

struct Stream {
    cudaStream_t handle = nullptr;
    Stream() { check(cudaStreamCreate(&handle)); }
    ~Stream() { cudaStreamDestroy(handle); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;
};

int run(int count, char** arguments) {
    if (count != 3) {
        std::cerr << "usage: classify_tensorrt BUNDLE[/engines/NAME.engine] IMAGE.jpg|IMAGE.png\n";
        return 2;
    }
    const Bundle bundle(arguments[1], [](const nlohmann::json& artifact) { return artifact.at("kind") == "engine"; });
    const Image image = read_image(arguments[2]);

    std::ifstream file(bundle.file, std::ios::binary);
    const std::vector<char> plan{std::istreambuf_iterator<char>(file), {}};
    Log log;
    const std::unique_ptr<nvinfer1::IRuntime> runtime(nvinfer1::createInferRuntime(log));
    if (!runtime) throw std::runtime_error("TensorRT finds no GPU that it can use");
    const std::unique_ptr<nvinfer1::ICudaEngine> engine(runtime->deserializeCudaEngine(plan.data(), plan.size()));
    if (!engine) throw std::runtime_error(bundle.file.string() + " is of another TensorRT or GPU: build it here");
    const std::unique_ptr<nvinfer1::IExecutionContext> context(engine->createExecutionContext());
    if (!context) throw std::runtime_error("there is no memory for the engine's context");

    // image: uint8 (batch, height, width, 3); logits: float32 (batch, classes)
    const nvinfer1::Dims4 shape(1, static_cast<int64_t>(image.height), static_cast<int64_t>(image.width), 3);
    if (!context->setInputShape("image", shape) || context->inferShapes(0, nullptr) != 0)
        throw std::runtime_error("the engine takes no image of this size: see its profile in manifest.json");
    const nvinfer1::Dims answered = context->getTensorShape("logits");
    if (engine->getTensorDataType("image") != nvinfer1::DataType::kUINT8 ||
        engine->getTensorDataType("logits") != nvinfer1::DataType::kFLOAT || answered.nbDims != 2)
        throw std::runtime_error("this is not an engine of a vitdeploy bundle");
    std::vector<float> logits(static_cast<size_t>(answered.d[1]));

    const Stream stream;
    const size_t bytes = logits.size() * sizeof(float);
    const DeviceMemory pixels(image.pixels.size()), scores(bytes);
    check(cudaMemcpyAsync(pixels.address, image.pixels.data(), image.pixels.size(), cudaMemcpyHostToDevice,
                          stream.handle));
    if (!context->setTensorAddress("image", pixels.address) || !context->setTensorAddress("logits", scores.address) ||
        !context->enqueueV3(stream.handle))
        throw std::runtime_error("TensorRT could not run the engine");
    check(cudaMemcpyAsync(logits.data(), scores.address, bytes, cudaMemcpyDeviceToHost, stream.handle));
    check(cudaStreamSynchronize(stream.handle));
    bundle.print_best(logits.data(), logits.size());
    return 0;
}

int main(int count, char** arguments) { return reporting_errors(run, count, arguments); }
